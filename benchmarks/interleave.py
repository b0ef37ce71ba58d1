"""Timing on a noisy machine: variants take turns, and medians are compared with a reference of the same rounds."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Mapping

from rich.console import Console
from rich.table import Table


def interleave(
    variants: Mapping[str, Callable[[], object]], rounds: int, warmup: int = 1, tell: bool = False
) -> dict[str, list[float]]:
    """Seconds of each variant in each round; in every round each variant runs once, in turn.

    Args:
        variants: What is measured, by name.
        rounds: How often each runs.
        warmup: Rounds before that, which do not count.
        tell: Whether each time is printed on stderr as soon as it is known.
    """
    for _ in range(warmup):
        for run in variants.values():
            run()
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(rounds):
        for name, run in variants.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
            if tell:
                print(f"round {number + 1} of {rounds}: {name}: {seconds[name][-1]:.2f} s", file=sys.stderr, flush=True)
    return seconds


def ratios(seconds: Mapping[str, list[float]], reference: str) -> dict[str, float]:
    """Median over the rounds of reference time / own time: above 1 is faster than the reference."""
    return {
        name: statistics.median(ref / own for ref, own in zip(seconds[reference], times, strict=True))
        for name, times in seconds.items()
    }


def report(title: str, seconds: Mapping[str, list[float]], reference: str, note: str = "") -> dict[str, float]:
    """Print medians, spread and speed against the reference; return the speeds."""
    speeds = ratios(seconds, reference)
    table = Table(title=title, caption=note or None)
    for column in ("variant", "median s", "min s", "max s", f"speed against {reference}"):
        table.add_column(column, justify="left" if column == "variant" else "right")
    for name, times in seconds.items():
        table.add_row(
            name, f"{statistics.median(times):.4f}", f"{min(times):.4f}", f"{max(times):.4f}", f"{speeds[name]:.3f}"
        )
    Console(width=110).print(table)
    return speeds
