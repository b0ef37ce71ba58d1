"""A run as lines of text: one line per message, `key=value`, easy to read in a cluster's log file and easy to grep."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

from modlib.runtime.units import format_bytes, format_count, format_percent, format_seconds
from modlib.tracking.messages import CheckpointSaved, MetricsLogged, Notice, RunEnded, RunStarted, TextLogged

SHORT_NAMES = {
    "train/loss": "loss",
    "train/task_loss": "task_loss",
    "train/router_balance_loss": "router_balance_loss",
    "train/lr": "lr",
    "train/grad_norm": "grad_norm",
    "throughput/tokens_per_s": "tokens/s",
    "throughput/mfu": "mfu",
    "throughput/data_wait": "data_wait",
    "memory/peak_gib": "memory",
}


def format_value(name: str, value: float) -> str:
    """A metric's value for people, by its name: shares as percent, memory in GiB, learning rates as 3.00e-04."""
    kind = name.rsplit("/", 1)[-1]
    if kind in ("mfu", "data_wait"):
        return format_percent(value)
    if kind == "tokens_per_s":
        return format_count(value)
    if kind.endswith("_gib"):
        return f"{value:.2f}GiB"
    if kind == "lr":
        return f"{value:.2e}"
    if kind in ("loss", "bits_per_byte", "lm_eval_bits_per_byte") or kind.endswith("_loss"):
        return f"{value:.4f}"
    return f"{value:.4g}" if abs(value) < 10_000 else f"{value:.3e}"


def split_evaluations(values: Mapping[str, float]) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """Training metrics, and per evaluator its metrics without the prefix `val/<name>/`."""
    training: dict[str, float] = {}
    evaluations: dict[str, dict[str, float]] = {}
    for name, value in values.items():
        parts = name.split("/", 2)
        if parts[0] == "val" and len(parts) == 3:
            evaluations.setdefault(parts[1], {})[parts[2]] = value
        else:
            training[name] = value
    return training, evaluations


@dataclass
class Clock:
    """Steps per second of this attempt, from the times at which steps were seen; the first step is left out."""

    start_step: int
    num_steps: int
    started: float
    first: tuple[int, float] | None = None
    last: tuple[int, float] | None = None

    def saw(self, step: int, now: float) -> None:
        """Note that `step` is done at time `now`; going back in steps is ignored."""
        if step <= self.start_step:
            return
        if self.first is None:
            self.first = (step, now)
        if self.last is None or step > self.last[0]:
            self.last = (step, now)

    @property
    def step(self) -> int:
        return self.last[0] if self.last else self.start_step

    def elapsed(self, now: float) -> float:
        return max(0.0, now - self.started)

    def eta(self, now: float) -> float | None:
        """Seconds left, or None before a second of steps was seen. Evaluations and checkpoints are part of the pace."""
        if self.first is None or self.last is None or self.last[1] - self.first[1] < 1.0:
            return None
        per_step = (self.last[1] - self.first[1]) / (self.last[0] - self.first[0])
        return max(0.0, (self.num_steps - self.last[0]) * per_step - (now - self.last[1]))


class Lines:
    """Messages to lines, one method per kind. Each line starts with the local time of its message."""

    def __init__(self) -> None:
        self.clock = Clock(0, 0, time.time())

    def of(self, message: object, now: float) -> list[str]:
        """The lines that this message is worth.

        Args:
            message: Any message.
            now: Unix time in seconds, for messages that carry none.
        """
        if isinstance(message, RunStarted):
            self.clock = Clock(message.start_step, message.num_steps, now)
            line = f"{_stamp(now)} start run={message.run_name} attempt={message.attempt} steps={message.num_steps}"
            return [line + (f" resumed_from_step={message.start_step}" if message.start_step else "")]
        if isinstance(message, MetricsLogged):
            self.clock.saw(message.step, message.time)
            return self._metrics(message)
        if isinstance(message, CheckpointSaved):
            size, took = format_bytes(message.bytes).replace(" ", ""), format_seconds(message.seconds).replace(" ", "")
            return [f"{_stamp(now)} checkpoint step={message.step} size={size} took={took} path={message.path}"]
        if isinstance(message, TextLogged):
            head = f"{_stamp(now)} {message.tag} step={message.step} text:"
            return [head, *(f"    {line}" for line in printable(message.text).splitlines())]
        if isinstance(message, Notice):
            return [f"{_stamp(now)} {message.level}: {message.text}"]
        if isinstance(message, RunEnded):
            took = format_seconds(self.clock.elapsed(now)).replace(" ", "")
            return [
                f"{_stamp(now)} end reason={message.reason!r} step={message.step}/{self.clock.num_steps} elapsed={took}"
            ]
        return []

    def _metrics(self, message: MetricsLogged) -> list[str]:
        training, evaluations = split_evaluations(message.values)
        lines = []
        step = f"step={message.step}/{self.clock.num_steps}"
        if training:
            elapsed = format_seconds(self.clock.elapsed(message.time)).replace(" ", "")
            left = self.clock.eta(message.time)
            eta = "?" if left is None else format_seconds(left).replace(" ", "")
            pairs = [f"{SHORT_NAMES.get(name, name)}={format_value(name, value)}" for name, value in training.items()]
            lines.append(f"{_stamp(message.time)} train {step} {' '.join(pairs)} elapsed={elapsed} eta={eta}")
        for name, values in evaluations.items():
            pairs = [f"{kind}={format_value(kind, value)}" for kind, value in values.items()]
            lines.append(f"{_stamp(message.time)} eval {step} name={name} {' '.join(pairs)}")
        return lines


def printable(text: str) -> str:
    """The text without control characters (a model's sample may contain any): they become the replacement character."""
    return "".join(char if char.isprintable() or char in "\n\t" else "�" for char in text)


def _stamp(unix_time: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(unix_time))
