"""What an attempt has to show at its end, kept in memory: it is right whatever became of the files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from modlib.runtime.json_files import MOST_NUMBER
from modlib.tracking.jsonl import METRICS_FILE, read_last_lines, read_lines

LAST_BYTES = 1 << 20


@dataclass
class Results:
    """The numbers of a run so far.

    Args:
        values: The last value of every metric.
        best: The lowest loss of every evaluator, "val/<name>/loss" -> (loss, step).
        tokens_per_s: Mean over this attempt, evaluations and checkpoints left out; None before a first line.
    """

    values: dict[str, float] = field(default_factory=dict)
    best: dict[str, tuple[float, int]] = field(default_factory=dict)
    tokens_per_s: float | None = None
    _rates: int = 0
    _seconds_per_token: float = 0.0

    @classmethod
    def until(cls, run_path: Path, step: int = MOST_NUMBER) -> Results:
        """Those of the earlier attempts, as far as metrics.jsonl has them, up to a step."""
        results = cls(best=best_evaluations(run_path, step))
        try:
            for record in read_last_lines(run_path / METRICS_FILE, LAST_BYTES):
                if record["step"] <= step:
                    results.values |= {name: value for name, value in record.items() if "/" in name}
        except OSError:
            pass  # no metrics, no values
        return results

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Take in what is logged of a step."""
        self.values.update(values)
        _lower(self.best, step, values)
        rate = values.get("throughput/tokens_per_s", 0.0)
        if rate > 0:
            self._rates += 1
            self._seconds_per_token += 1 / rate
            self.tokens_per_s = self._rates / self._seconds_per_token

    def to_json(self) -> dict[str, Any]:
        """As plain data, for `Results.of`."""
        return {"values": self.values, "best": self.best, "tokens_per_s": self.tokens_per_s}

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> Results:
        """What `to_json` gave."""
        best = {name: (loss, step) for name, (loss, step) in content["best"].items()}
        return cls(dict(content["values"]), best, content["tokens_per_s"])


def best_evaluations(run_path: Path, step: int = MOST_NUMBER) -> dict[str, tuple[float, int]]:
    """The lowest loss of every evaluator in metrics.jsonl up to a step: "val/<name>/loss" -> (loss, step)."""
    best: dict[str, tuple[float, int]] = {}
    try:
        for record in read_lines(run_path / METRICS_FILE, containing=b'"val/'):
            if record["step"] <= step:
                _lower(best, record["step"], record)
    except OSError:
        pass  # no metrics, no best
    return best


def _lower(best: dict[str, tuple[float, int]], step: int, values: Mapping[str, float]) -> None:
    for name, value in values.items():
        if name.startswith("val/") and name.endswith("/loss") and value < best.get(name, (float("inf"), 0))[0]:
            best[name] = (value, step)
