"""What W&B has of a run, and what it has not: marks in the run folder, measured against metrics.jsonl."""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypedDict

from modlib.runtime.durable import atomic_write_text
from modlib.runtime.json_files import JSONError, read_json
from modlib.tracking.jsonl import METRICS_FILE, SAMPLES_FILE, read_lines

WANDB_FOLDER = "wandb"
SENT_FILE = "sent.json"
OLD_ALL_WRITTEN = "all_written"  # of an older modlib: the last attempt's process came to its end
UNSURE_S = 60.0  # a process that was killed may have kept rows of this age in its buffers


class _Record(TypedDict):
    lines: dict[str, int]
    texts: int


@dataclass
class Sent:
    """What W&B has: uploaded, or in its own files in the run folder.

    Args:
        lines: Attempt -> how many of its lines, counted from its first.
        texts: How many of the texts, counted from the first.
    """

    lines: dict[int, int] = field(default_factory=dict)
    texts: int = 0

    def to_json(self) -> dict[str, Any]:
        """As sent.json has it."""
        return {"lines": {str(attempt): count for attempt, count in self.lines.items()}, "texts": self.texts}

    @classmethod
    def of_json(cls, record: Any) -> Sent:
        """The inverse."""
        return cls({int(attempt): count for attempt, count in record["lines"].items()}, record["texts"])


@dataclass(frozen=True)
class Counts:
    """How much of a run there is, and how much of it W&B has for sure.

    Args:
        rows: Lines of metrics.jsonl.
        sent: Those of them that W&B has.
    """

    rows: int
    sent: int


def read_sent(run_path: Path) -> Sent:
    """The marks of a run; of a run of an older modlib, what may be taken for granted."""
    folder = run_path / WANDB_FOLDER
    try:
        return Sent.of_json(read_json(folder / SENT_FILE, _Record))
    except (JSONError, ValueError):
        return _of_older_modlib(run_path, folder)


def write_sent(run_path: Path, sent: Sent) -> None:
    """Mark what W&B has. Best effort: without a mark it is sent again."""
    with contextlib.suppress(OSError):
        atomic_write_text(run_path / WANDB_FOLDER / SENT_FILE, json.dumps(sent.to_json()) + "\n")


def unsent(run_path: Path, sent: Sent) -> Iterator[tuple[str, dict[str, Any]]]:
    """What W&B has not, in the order of the run's files: ("metrics", line) and then ("text", record)."""
    seen: Counter[int] = Counter()
    for line in _lines(run_path / METRICS_FILE):
        attempt = line.get("attempt", 0)
        seen[attempt] += 1
        if seen[attempt] > sent.lines.get(attempt, 0):
            yield "metrics", line
    for number, record in enumerate(_lines(run_path / SAMPLES_FILE), 1):
        if number > sent.texts and {"tag", "text"} <= set(record):
            yield "text", record


def count(run_path: Path) -> Counts:
    """How many rows there are, and how many W&B has."""
    sent, seen = read_sent(run_path), Counter(line.get("attempt", 0) for line in _lines(run_path / METRICS_FILE))
    return Counts(sum(seen.values()), sum(min(number, sent.lines.get(attempt, 0)) for attempt, number in seen.items()))


def given_before(run_path: Path, attempt: int, step: int) -> tuple[int, int]:
    """How many lines of an attempt and how many texts there are up to a step."""
    own = sum(1 for line in _lines(run_path / METRICS_FILE) if line.get("attempt") == attempt and line["step"] <= step)
    return own, sum(1 for record in _lines(run_path / SAMPLES_FILE) if record["step"] <= step)


def texts_kept(run_path: Path) -> int:
    """Texts that are part of the run: those beyond the step of a later attempt were dropped."""
    return sum(1 for _ in _lines(run_path / SAMPLES_FILE))


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    with contextlib.suppress(FileNotFoundError):
        yield from read_lines(path)


def _of_older_modlib(run_path: Path, folder: Path) -> Sent:
    """What its last process wrote to the end, or else what was a minute old when that was killed."""
    if not any(folder.glob("*run-*/run-*.wandb")):
        return Sent()
    lines = list(_lines(run_path / METRICS_FILE))
    if not (folder / OLD_ALL_WRITTEN).exists() and lines:
        newest = max(line.get("time", 0.0) for line in lines)
        lines = [line for line in lines if line.get("time", 0.0) < newest - UNSURE_S]
    return Sent(dict(Counter(line.get("attempt", 0) for line in lines)), texts_kept(run_path))
