"""Two metrics.jsonl of what should be the same run, compared number by number."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modlib.tracking.jsonl import read_lines

MEASURED_HERE = ("throughput/", "memory/")
"""Beginnings of metrics that are of the machine, not of the run's numbers."""


@dataclass(frozen=True)
class FirstDifference:
    """Where two runs part.

    Args:
        step: Of the metric.
        metric: Its name.
        before: The first run's value; None where it has none.
        after: The second run's.
    """

    step: int
    metric: str
    before: float | None
    after: float | None

    def __str__(self) -> str:
        values = ["none" if value is None else repr(value) for value in (self.before, self.after)]
        return f"step {self.step}, {self.metric}: {values[0]} in the run, {values[1]} now"


@dataclass(frozen=True)
class Comparison:
    """What was compared.

    Args:
        steps: Logged steps that both runs have up to the last one.
        metrics: Different metrics in them.
        values: Numbers compared.
        first_difference: None where all of them are equal, bit for bit.
    """

    steps: int
    metrics: int
    values: int
    first_difference: FirstDifference | None


def last_step(path: Path) -> int:
    """The last step in a metrics.jsonl; 0 where there is none yet."""
    return max((int(line["step"]) for line in read_lines(path)), default=0) if path.exists() else 0


def compare(before: Path, after: Path, until: int) -> Comparison:
    """Compare all numbers of two metrics.jsonl but those of speed and memory.

    Args:
        before: Of the first run.
        after: Of the second.
        until: The last step that counts.
    """
    sides = [_by_step(read_lines(path) if path.exists() else (), until) for path in (before, after)]
    names: set[str] = set()
    values = 0
    steps = sorted({*sides[0], *sides[1]})
    for number, step in enumerate(steps):
        mine, theirs = sides[0].get(step, {}), sides[1].get(step, {})
        for name in dict.fromkeys((*mine, *theirs)):
            a, b = mine.get(name), theirs.get(name)
            if not _same(a, b):
                return Comparison(number, len(names), values, FirstDifference(step, name, a, b))
            names.add(name)
            values += 1
    return Comparison(len(steps), len(names), values, None)


def _by_step(lines: Iterable[Mapping[str, Any]], until: int) -> dict[int, dict[str, float]]:
    found: dict[int, dict[str, float]] = {}
    for line in lines:
        if line["step"] <= until:
            numbers = {
                name: value for name, value in line.items() if "/" in name and not name.startswith(MEASURED_HERE)
            }
            found.setdefault(int(line["step"]), {}).update(numbers)
    return found


def _same(a: float | None, b: float | None) -> bool:
    """Equality of bits, as far as JSON tells: NaN is NaN, and -0.0 is not 0.0."""
    if a is None or b is None:
        return a is b
    if math.isnan(a) or math.isnan(b):
        return math.isnan(a) and math.isnan(b)
    return a == b and math.copysign(1, a) == math.copysign(1, b)
