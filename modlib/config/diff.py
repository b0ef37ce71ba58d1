"""Compares two configurations by what they mean."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypedDict

from modlib.config.config import CONFIG_FILE, PROVENANCE_FILE, Config, load
from modlib.config.renames import current_parameters
from modlib.runtime.errors import ConfigError
from modlib.runtime.json_files import JSONError, read_json

ABSENT = "(absent)"


class _Whole(TypedDict):
    """What every provenance.json has."""

    format: Literal[1]
    config_sha256: str
    hash: str
    parameters: dict[str, dict[str, Any]]


class _Record(_Whole, total=False):
    """Other stored hashes of the same configuration, where there are any."""

    same_as: list[str]


class Difference(NamedTuple):
    """One parameter that differs; values as gin text, `(absent)` where a side has none."""

    name: str
    a_value: str
    b_value: str
    a_origin: str
    b_origin: str


def diff(a: Config | Mapping[str, Any] | str | Path, b: Config | Mapping[str, Any] | str | Path) -> list[Difference]:
    """The parameters whose values differ, in the order of the first configuration.

    Args:
        a: A configuration, what one recorded, a gin file, or a run folder.
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


def _parameters(source: Config | Mapping[str, Any] | str | Path) -> dict[str, tuple[str, str]]:
    record = source if isinstance(source, Mapping) else recorded(source)
    if record is None:
        assert isinstance(source, str | Path)
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
    record = written_record(path)
    unchanged = record is not None and record["config_sha256"] == _sha256(path / CONFIG_FILE)
    return record if unchanged else None  # else config.gin was written or changed by hand


def written_record(folder: Path) -> dict[str, Any] | None:
    """What provenance.json of a run folder holds, whatever its config.gin is by now; None where it cannot be read."""
    try:
        return dict(read_json(folder / PROVENANCE_FILE, _Record))
    except JSONError:
        return None


def _sha256(path: Path) -> str | None:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return None
