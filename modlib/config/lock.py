"""What a recipe was when it was locked: every parameter by name, and which of them changed since."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from modlib.config.config import Config
from modlib.config.diff import ABSENT
from modlib.config.renames import current_parameters

SCIENCE, OTHER = "science", "other"


class Drift(NamedTuple):
    """One parameter that is not what was locked; values as gin text, `(absent)` where a side has none."""

    name: str
    locked: str
    now: str
    science: bool

    def __str__(self) -> str:
        return f"{self.name}: {self.locked} -> {self.now}"


def lock_entry(config: Config) -> dict[str, Any]:
    """What lock.json keeps of a recipe: its hash, and every parameter, those that change no number apart."""
    return entry_of(config.record())


def entry_of(record: Mapping[str, Any]) -> dict[str, Any]:
    """The same, of what a run folder says about itself."""
    entry: dict[str, Any] = {"hash": record["hash"], SCIENCE: {}, OTHER: {}}
    for name, parameter in record["parameters"].items():
        entry[SCIENCE if parameter["science"] else OTHER][name] = parameter["value"]
    return entry


def drift(locked: Mapping[str, Any], now: Mapping[str, Any]) -> list[Drift]:
    """The parameters that differ between two entries, in the order of the first, those that change numbers first.

    Args:
        locked: From lock.json.
        now: The recipe as it is read now, or a run's.
    """
    sides = []
    for entry in (locked, now):
        parts = {kind: current_parameters(entry[kind]) for kind in (SCIENCE, OTHER)}
        sides.append({name: (value, kind) for kind, part in parts.items() for name, value in part.items()})
    before, after = sides
    found = []
    for name in dict.fromkeys((*before, *after)):
        old, new = before.get(name, (ABSENT, "")), after.get(name, (ABSENT, ""))
        if old[0] != new[0]:
            found.append(Drift(name, old[0], new[0], SCIENCE in (old[1], new[1])))
    return sorted(found, key=lambda one: not one.science)
