"""What came out of a sweep: the state and the metric of every point, and the best of them."""

from __future__ import annotations

import ast
import math
import signal
import socket
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import psutil

from modlib.launching.sweep import Point, Sweep
from modlib.runtime.errors import ConfigError
from modlib.tracking.jsonl import read_lines

Goal = Literal["min", "max"]
ERROR_CLASSES = {
    2: "config error",
    3: "data error",
    4: "checkpoint error",
    5: "non-finite numbers",
    6: "hang",
    7: "stopped with steps lost",
    130: "interrupted",
}
LARGER_IS_BETTER = ("accuracy", "tokens_per_s", "mfu")
USUAL = ("val/validation/loss", "train/loss")


@dataclass(frozen=True)
class Result:
    """How one point stands.

    Args:
        point: Which.
        state: "finished", "running", "stopped", "failed", "died" or "missing".
        exit_code: Of its last attempt; None where it is not known.
        step: Optimizer steps done.
        last: The metric's last value.
        best: Its best finite value.
        best_step: Where that was.
    """

    point: Point
    state: str
    exit_code: int | None
    step: int | None
    last: float | None
    best: float | None
    best_step: int | None


def results(sweep: Sweep, metric: str, goal: Goal) -> list[Result]:
    """The results of all points, in their order."""
    return [_result(point, metric, goal) for point in sweep.points]


def _result(point: Point, metric: str, goal: Goal) -> Result:
    record = point.run.read()
    last = best = best_step = step = None
    for line in _lines(point):
        value, step = line.get(metric), line["step"]
        if isinstance(value, int | float):
            last = float(value)
            if math.isfinite(last) and (best is None or better(last, best, goal)):
                best, best_step = last, step
    state, code = state_of(record), record.get("exit_code")
    return Result(point, state, code, record.get("step", step), last, best, best_step)


def better(a: float, b: float, goal: Goal) -> bool:
    """Whether a is better than b."""
    return a < b if goal == "min" else a > b


def state_of(record: dict[str, Any]) -> str:
    """The state that a run.json tells; a run whose process is gone from this host has died."""
    status = record.get("status")
    if status == "running" and record.get("host") == socket.gethostname() and not psutil.pid_exists(record["pid"]):
        return "died"
    return "missing" if status in (None, "created") else str(status)


def why(exit_code: int | None) -> str:
    """The class of an error in words, with the exit code."""
    if exit_code is None:
        return "no exit code"
    if exit_code < 0:
        try:
            return f"killed by {signal.Signals(-exit_code).name}"
        except ValueError:
            return f"killed by signal {-exit_code}"
    return f"{ERROR_CLASSES.get(exit_code, 'unexpected error')}, exit code {exit_code}"


def choose_metric(sweep: Sweep, wanted: str | None) -> str:
    """The metric that was asked for, or the usual one that the runs have.

    Raises:
        ConfigError: No run has it.
    """
    there: dict[str, None] = {}
    for point in sweep.points:
        for line in _lines(point):
            there.update(dict.fromkeys(name for name in line if "/" in name))
        if (wanted or USUAL[0]) in there:
            return wanted or USUAL[0]
    if wanted is None:
        losses = [name for name in there if name.startswith("val/") and name.endswith("/loss")]
        return next((name for name in (*losses, USUAL[1]) if name in there), USUAL[0])
    if not there:
        raise ConfigError(f"--metric ({wanted}) must be a metric of the runs, which have none yet; run the sweep first")
    raise ConfigError(f"--metric ({wanted}) must be a metric of the runs; they have {', '.join(sorted(there))}")


def usual_goal(metric: str) -> Goal:
    """Which way a metric is better, told by its name."""
    return "max" if any(metric.endswith(word) for word in LARGER_IS_BETTER) else "min"


def best_result(found: Iterable[Result], goal: Goal) -> Result | None:
    """The result with the best value; the first of several."""
    with_value = [result for result in found if result.best is not None]
    sign = 1 if goal == "min" else -1
    return min(with_value, key=lambda result: sign * (result.best or 0.0), default=None)


def value_of(text: str) -> Any:
    """The value of a gin text, or the text itself where it is a component, a macro or arithmetic."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def is_seed(key: str) -> bool:
    """Whether a key only repeats a run with other random numbers."""
    return key.rpartition(".")[2].lower().endswith("seed")


@dataclass(frozen=True)
class Repeated:
    """The best values of the points that differ in seeds alone.

    Args:
        values: What they have in common.
        bests: One for each that has a value.
    """

    values: tuple[tuple[str, str], ...]
    bests: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Mean of the bests."""
        return sum(self.bests) / len(self.bests)


def over_seeds(found: Sequence[Result]) -> list[Repeated]:
    """Results grouped by everything but seeds; without those that have no value yet."""
    groups: dict[tuple[tuple[str, str], ...], list[float]] = {}
    for result in found:
        if result.best is not None:
            values = tuple((key, text) for key, text in result.point.values.items() if not is_seed(key))
            groups.setdefault(values, []).append(result.best)
    return [Repeated(values, tuple(bests)) for values, bests in groups.items()]


def _lines(point: Point) -> Iterable[dict[str, Any]]:
    try:
        yield from read_lines(point.run.metrics_path)
    except OSError:
        return  # not begun
