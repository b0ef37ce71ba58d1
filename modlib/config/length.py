"""Is a configuration another one, but for how long it trains and how its schedule goes?"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from modlib.components import known_components
from modlib.config.config import Config
from modlib.config.diff import Difference, diff
from modlib.config.values import Reference

NUM_STEPS = "train.num_steps"
_LENGTHS = "number_conversion"  # components that compute a number of steps


def other_differences(before: Config, config: Config) -> list[Difference]:
    """What differs and changes numbers, beside train.num_steps and the numbers of schedules.

    Which schedules they are is not one of their numbers. A number of steps may be computed, by components that compute
    nothing else of the run.
    """
    free = _lengths(before) | _lengths(config)
    science = before.science | config.science
    return [one for one in diff(before, config) if one.name in science and one.name not in free]


def _lengths(config: Config) -> set[str]:
    """Names of the settings that say how long the run is, and how its schedule goes."""
    free, others = set(), []
    for setting in config.settings:
        kind = _type_of(setting.instance.name)
        references = list(_references(setting.value))
        computed = bool(references) and all(one.called and _type_of(one.selector) == _LENGTHS for one in references)
        if setting.name == NUM_STEPS or (kind in ("scheduler", _LENGTHS) and (computed or not references)):
            free.add(setting.name)
        elif setting.name in config.science:
            others += references
    if any(_type_of(one.selector) == _LENGTHS for one in others):  # something else of the run is computed by them
        free -= {one.name for one in config.settings if _type_of(one.instance.name) == _LENGTHS}
    return free


def _type_of(name: str) -> str:
    entry = known_components().get(name)
    return "" if entry is None else entry.type


def _references(value: Any) -> Iterator[Reference]:
    if isinstance(value, Reference):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _references(item)
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _references(key)
            yield from _references(item)
