"""What a recipe was when it was locked: every parameter by name, and which of them changed since."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from modlib.components import known_components, load_component
from modlib.config.checks import default_value
from modlib.config.config import Config
from modlib.config.diff import ABSENT
from modlib.config.hashing import GLOBAL_BATCH
from modlib.config.renames import current_parameters
from modlib.config.signatures import signature_of
from modlib.config.values import format_value
from modlib.runtime.errors import ConfigError

SCIENCE, OTHER = "science", "other"
CORPUS = "stdlib:"  # what the name of a corpus begins with, where a data file has its path


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


def changes(locked: Mapping[str, Any], now: Mapping[str, Any], *, data_known: bool) -> list[Drift]:
    """The same between a recipe and a run, or a recipe of then and now, without what changed no number for certain.

    A parameter that one side has not yet, and the other at its default, is a newer code's, which does as before.

    Args:
        locked: One entry.
        now: The other.
        data_known: Where a data file lies does not count, since its fingerprint tells what is in it.
    """
    return [
        one
        for one in drift(locked, now)
        if not (data_known and is_data_path(one)) and not _is_default_of_newer_code(one)
    ]


def is_left_open(one: Drift) -> bool:
    """Whether a parameter that differs is the global batch of a run, which its recipe leaves to the number of ranks."""
    return one.name == GLOBAL_BATCH and one.locked == "None"


def is_data_path(one: Drift) -> bool:
    """Whether a parameter that differs is where a data file lies; a corpus by its name is no path."""
    entry, parameter = known_components().get(_component(one.name)), one.name.rpartition(".")[2]
    return (
        entry is not None
        and entry.type == "dataset"
        and (parameter == "path" or parameter.endswith("_path"))
        and all(value[:1] in "'\"" and not value[1:].startswith(CORPUS) for value in (one.locked, one.now))
    )


def _is_default_of_newer_code(one: Drift) -> bool:
    if ABSENT not in (one.locked, one.now):
        return False
    try:
        component = load_component(_component(one.name))
    except (KeyError, ConfigError, ImportError):
        return False
    parameter = signature_of(component).parameters.get(one.name.rpartition(".")[2])
    return parameter is not None and format_value(default_value(parameter)) in (one.locked, one.now)


def _component(parameter: str) -> str:
    return parameter.rpartition(".")[0].rpartition("/")[2]
