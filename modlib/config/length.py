"""Is a configuration another one, but for how long it trains and how its schedule goes?"""

from __future__ import annotations

from modlib.components import known_components
from modlib.config.config import Config
from modlib.config.diff import Difference, diff
from modlib.config.resolving import Setting
from modlib.config.values import is_literal

NUM_STEPS = "train.num_steps"


def other_differences(before: Config, config: Config) -> list[Difference]:
    """What differs and changes numbers, beside train.num_steps and the numbers of schedules.

    Which schedules they are is not one of their numbers.
    """
    free = {NUM_STEPS, *(one.name for side in (before, config) for one in side.settings if _is_number_of_schedule(one))}
    science = before.science | config.science
    return [one for one in diff(before, config) if one.name in science and one.name not in free]


def _is_number_of_schedule(setting: Setting) -> bool:
    entry = known_components().get(setting.instance.name)
    return entry is not None and entry.type == "scheduler" and is_literal(setting.value)


def num_steps_of(config: Config) -> int | None:
    """The length of the run; None where it is computed when the run is built."""
    steps = config.resolved.get(NUM_STEPS)
    return steps if isinstance(steps, int) else None
