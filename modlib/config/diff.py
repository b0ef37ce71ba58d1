"""Compares two configurations by what they mean."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from modlib.config.config import CONFIG_FILE, PROVENANCE_FILE, Config, load
from modlib.config.renames import current_parameters
from modlib.runtime.errors import ConfigError

ABSENT = "(absent)"


class Difference(NamedTuple):
    """One parameter that differs; values as gin text, `(absent)` where a side has none."""

    name: str
    a_value: str
    b_value: str
    a_origin: str
    b_origin: str


def diff(a: Config | str | Path, b: Config | str | Path) -> list[Difference]:
    """The parameters whose values differ, in the order of the first configuration.

    Args:
        a: A configuration, a gin file, or a run folder.
        b: Another.

    Raises:
        ConfigError: A file is wrong, or a folder holds no config.gin.
    """
    left, right = _parameters(a), _parameters(b)
    found = []
    for name in dict.fromkeys((*left, *right)):
        a_value, a_origin = left.get(name, (ABSENT, ""))
        b_value, b_origin = right.get(name, (ABSENT, ""))
        if a_value != b_value:
            found.append(Difference(name, a_value, b_value, a_origin, b_origin))
    return found


def render_diff(differences: Sequence[Difference]) -> str:
    """One line for each difference: `AdamW.lr: 0.0003 -> 0.0006 (b.gin:4)`."""
    lines = []
    for one in differences:
        origins = f"  ({one.a_origin or 'not there'}; {one.b_origin or 'not there'})"
        lines.append(f"{one.name}: {one.a_value} -> {one.b_value}{origins}")
    return "\n".join(lines)


def _parameters(source: Config | str | Path) -> dict[str, tuple[str, str]]:
    record = recorded(source)
    if record is None:
        assert not isinstance(source, Config)
        path = Path(source)
        record = load([path / CONFIG_FILE if path.is_dir() else source]).record()
    parameters = record["parameters"]
    values = current_parameters({name: one["value"] for name, one in parameters.items()})
    origins = [" -> ".join(one["origins"]) or "default" for one in parameters.values()]
    return {name: (value, origin) for (name, value), origin in zip(values.items(), origins, strict=True)}


def recorded(source: Config | str | Path) -> dict[str, Any] | None:
    """What a configuration or a run folder says about itself; None when the gin file has to be read.

    A run of an older modlib can be compared although its components have changed since: nothing is imported.

    Raises:
        ConfigError: The folder holds no config.gin.
    """
    if isinstance(source, Config):
        return source.record()
    path = Path(source)
    if path.name == CONFIG_FILE and path.is_file():
        path = path.parent
    if not path.is_dir():
        return None
    if not (path / CONFIG_FILE).is_file():
        raise ConfigError(f"{path} holds no {CONFIG_FILE}; give a run folder or a gin file")
    try:
        record = json.loads((path / PROVENANCE_FILE).read_text(encoding="utf-8"))
        text = (path / CONFIG_FILE).read_bytes()
        if record["format"] == 1 and record["config_sha256"] == hashlib.sha256(text).hexdigest():
            return record
    except (OSError, ValueError, KeyError):
        pass
    return None  # config.gin was written or changed by hand
