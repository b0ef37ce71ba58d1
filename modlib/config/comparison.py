"""What differs between two configurations, by meaning."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modlib.config.config import Config, load

ABSENT = "(absent)"


@dataclass(frozen=True)
class Difference:
    """One parameter that is not the same.

    Args:
        name: Dotted name.
        first: Value in the first configuration, or ABSENT.
        second: Value in the second.
        first_origin: Where the first was set; "" for a default.
        second_origin: Where the second was set.
    """

    name: str
    first: Any
    second: Any
    first_origin: str
    second_origin: str


def diff(first: Config | str | Path, second: Config | str | Path) -> list[Difference]:
    """Every parameter in which two configurations differ, in the order of the first.

    Args:
        first: A configuration, a gin file, or a run folder.
        second: The same.
    """
    a, b = _config(first), _config(second)
    names = list(dict.fromkeys([*a.resolved, *b.resolved]))
    return [
        Difference(name, a.resolved.get(name, ABSENT), b.resolved.get(name, ABSENT), _origin(a, name), _origin(b, name))
        for name in names
        if repr(a.resolved.get(name, ABSENT)) != repr(b.resolved.get(name, ABSENT))
    ]


def render_diff(differences: Sequence[Difference]) -> str:
    """One indented line per difference: `AdamW.lr  0.0003 -> 0.0006  (--gin_param #1)`."""
    width = max((len(one.name) for one in differences), default=0)
    return "\n".join(
        f"    {one.name:<{width}}  {one.first!r} -> {one.second!r}" + (f"  ({one.second_origin})" if one.second_origin else "")
        for one in differences
    )


def _config(of: Config | str | Path) -> Config:
    if isinstance(of, Config):
        return of
    path = Path(of)
    return load([path / "config.gin" if path.is_dir() else of])


def _origin(config: Config, name: str) -> str:
    origins = config.provenance.get(name, [])
    return origins[-1] if origins else ""
