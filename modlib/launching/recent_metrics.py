"""Where a run is and how fast it goes, from the end of its metrics.jsonl."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modlib.tracking.jsonl import read_last_lines

TAIL_BYTES = 32 << 10  # some hundred lines
EVALUATION_BYTES = 1 << 20  # evaluations are rarer than the lines between them
PACE_LINES = 50


@dataclass(frozen=True)
class RecentMetrics:
    """What the last lines say.

    Args:
        step: Optimizer steps done at the last line; None for no line at all.
        tokens: Trained on by then.
        time: When it was written, in Unix time.
        attempt: That wrote it.
        loss: The last training loss.
        val_loss: The last loss of the first evaluator.
        seconds_per_step: Over the recent lines of that attempt, with evaluations and checkpoints; None before two.
        seconds_per_line: How often a line comes.
    """

    step: int | None = None
    tokens: int | None = None
    time: float | None = None
    attempt: int | None = None
    loss: float | None = None
    val_loss: float | None = None
    seconds_per_step: float | None = None
    seconds_per_line: float | None = None


def recent_metrics(path: Path) -> RecentMetrics:
    """Read the end of a metrics.jsonl, however long it is; a missing or empty one gives nothing."""
    try:
        lines = read_last_lines(path, TAIL_BYTES)
        if not lines:
            return RecentMetrics()
        val_loss = _last(lines, _val_loss)
        if val_loss is None and path.stat().st_size > TAIL_BYTES:
            val_loss = _last(read_last_lines(path, EVALUATION_BYTES, b'"val/'), _val_loss)
    except OSError:
        return RecentMetrics()
    last = lines[-1]
    pace = [
        (line["time"], line["step"])
        for line in lines[-PACE_LINES:]
        if line.get("attempt") == last.get("attempt") and math.isfinite(line.get("time", math.nan))
    ]
    seconds = pace[-1][0] - pace[0][0] if pace else 0.0
    steps = pace[-1][1] - pace[0][1] if pace else 0
    return RecentMetrics(
        step=int(last["step"]),
        tokens=last.get("tokens"),
        time=pace[-1][0] if pace else None,
        attempt=last.get("attempt"),
        loss=_last(lines, lambda line: line.get("train/loss")),
        val_loss=val_loss,
        seconds_per_step=seconds / steps if steps > 0 and seconds > 0 else None,
        seconds_per_line=seconds / (len(pace) - 1) if len(pace) > 1 else None,
    )


def _val_loss(line: dict[str, Any]) -> Any:
    losses = (value for name, value in line.items() if name.startswith("val/") and name.endswith("/loss"))
    return next(losses, None)


def _last(lines: list[dict[str, Any]], value_of: Any) -> float | None:
    values = (value_of(line) for line in reversed(lines))
    return next((float(value) for value in values if _is_number(value)), None)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
