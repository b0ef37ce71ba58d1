"""What varies between the points of a sweep, for drawing it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from modlib.config.axes import Axis, parse_axes
from modlib.launching.sweep import Sweep
from modlib.launching.sweep_results import Result, is_seed, value_of


@dataclass(frozen=True)
class Dimension:
    """One thing that varies between the points: an axis, or one key of an axis that is drawn.

    Args:
        keys: What it sets.
        levels: Its values in order, each the gin texts of its keys; numbers from small to large.
        drawn: The distribution; None for a list.
    """

    keys: tuple[str, ...]
    levels: tuple[tuple[str, ...], ...]
    drawn: str | None = None

    @property
    def name(self) -> str:
        return ", ".join(self.keys)

    @cached_property
    def numbers(self) -> list[float] | None:
        """The levels as numbers where the first key is one that tells them apart, for an axis with a scale."""
        if is_seed(self.keys[0]):
            return None
        values = [value_of(level[0]) for level in self.levels]
        if any(isinstance(value, bool) or not isinstance(value, int | float) for value in values):
            return None
        finite = all(math.isfinite(value) for value in values)
        return [float(value) for value in values] if finite and len(set(values)) == len(values) else None

    @property
    def is_log(self) -> bool:
        """Whether the values are spread by factors rather than by differences."""
        numbers = self.numbers
        if self.drawn is not None or numbers is None:
            return self.drawn == "loguniform"
        if len(numbers) < 3 or numbers[0] <= 0 or numbers[-1] < 10 * numbers[0]:
            return bool(numbers and len(numbers) == 2 and numbers[0] > 0 and numbers[1] >= 10 * numbers[0])
        return _unevenness(list(map(math.log, numbers))) < _unevenness(numbers)

    def level_of(self, result: Result) -> tuple[str, ...]:
        return tuple(result.point.values[key] for key in self.keys)

    def place(self, result: Result) -> float:
        """Where a point is: its number, or the place of its level."""
        index = self.levels.index(self.level_of(result))
        return self.numbers[index] if self.numbers else float(index)

    def labels(self) -> list[str]:
        return [", ".join(_short(text) for text in level) for level in self.levels]


def _unevenness(values: Sequence[float]) -> float:
    steps = [b - a for a, b in itertools.pairwise(values)]
    mean = sum(steps) / len(steps)
    return sum((step - mean) ** 2 for step in steps) / mean**2


def _short(text: str, most: int = 18) -> str:
    text = text.strip("'\"@")
    return text if len(text) <= most else f"{text[: most - 1]}…"


def dimensions(sweep: Sweep) -> list[Dimension]:
    """What varies, without seeds: the points that differ in them alone are drawn together."""
    found = []
    for text in sweep.axes:
        axes, _ = parse_axes(text, "sweep.json", is_file=False)
        for axis in axes:
            groups = [(one.key,) for one in axis.swept] if axis.is_random else [tuple(one.key for one in axis.swept)]
            found += [_dimension(sweep, axis, keys) for keys in groups]
    varied = [one for one in found if not all(map(is_seed, one.keys))]
    return varied or found[:1]


def _dimension(sweep: Sweep, axis: Axis, keys: tuple[str, ...]) -> Dimension:
    levels = dict.fromkeys(tuple(point.values[key] for key in keys) for point in sweep.points)
    made = Dimension(keys, tuple(levels), axis.swept[0].distribution)
    if made.numbers:
        made = Dimension(keys, tuple(sorted(levels, key=lambda level: value_of(level[0]))), made.drawn)
    return made
