"""Whether metrics.jsonl has a line of every logged step: it is the source of truth, so its lines are counted."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from itertools import pairwise
from typing import Any

Intervals = list[tuple[int, int]]
"""(step, n): from this step on, to the next entry's, a line was logged every n optimizer steps."""


def intervals_until(recorded: Any, step: int) -> Intervals:
    """The recorded intervals that a run has logged by up to a step; empty where none are recorded.

    Args:
        recorded: What run.json has.
        step: That the run continues from; what was logged beyond it is dropped.
    """
    pairs = recorded if isinstance(recorded, list) else []
    valid = [tuple(one) for one in pairs if isinstance(one, list) and len(one) == 2 and _are_whole(one)]
    return [(start, every) for start, every in valid if 0 <= start < step and every >= 1]


def with_interval(intervals: Intervals, step: int, every: int) -> Intervals:
    """The intervals of a run that goes on from a step with a line every so many."""
    return intervals if intervals and intervals[-1][1] == every else [*intervals, (step, every)]


def missing_steps(present: Collection[int], until: int, intervals: Intervals, every: int) -> list[int]:
    """The steps up to `until` that were logged and have no line.

    Args:
        present: Steps that have one.
        until: Optimizer steps done.
        intervals: How often lines were logged. Where an earlier modlib did not record it, as the lines there tell.
        every: Steps between two lines now; for a run of which no line is left to tell.
    """
    first = intervals[0][0] if intervals else until
    if first > 0:
        told = math.gcd(*(step for step in present if step <= first))
        intervals = [(0, told or every), *intervals]
    logged: list[int] = []
    for (start, step), (end, _) in pairwise([*intervals, (until, 0)]):
        logged += range(start - start % step + step, end + 1, step)
    return [step for step in dict.fromkeys(logged) if step not in present]


def ranges(missing: Sequence[int], present: Iterable[int]) -> list[tuple[int, int]]:
    """Missing steps as (first, last), each as far as no line that is there lies between."""
    found: list[tuple[int, int]] = []
    there = sorted(present)
    position = 0
    for step in sorted(missing):
        before = position
        while position < len(there) and there[position] < step:
            position += 1
        if found and position == before:
            found[-1] = (found[-1][0], step)
        else:
            found.append((step, step))
    return found


def text_of(found: Sequence[tuple[int, int]], most: int = 5) -> str:
    """Ranges for people: "steps 20 to 60, 100"."""
    shown = [str(first) if first == last else f"{first} to {last}" for first, last in found[:most]]
    more = f" and {len(found) - most} more gaps" if len(found) > most else ""
    return f"{'steps' if len(found) > 1 or found[0][0] != found[0][1] else 'step'} {', '.join(shown)}{more}"


def _are_whole(values: Iterable[Any]) -> bool:
    return all(type(value) is int for value in values)
