"""metrics.jsonl: every logged number on disk before training goes on, the source of truth of a run."""

from __future__ import annotations

import json
import logging
import math
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from modlib.components import component
from modlib.runtime.json_files import MOST_NUMBER, JSONError, parse_json
from modlib.runtime.run_folder import RunFolder
from modlib.tracking.growing_file import GrowingFile
from modlib.tracking.messages import CheckpointSaved, MetricsLogged, RunEnded, RunStarted, TextLogged
from modlib.tracking.metrics_gaps import intervals_until, missing_steps, ranges, text_of, with_interval

logger = logging.getLogger("modlib")

METRICS_FILE = "metrics.jsonl"
TRAINING = "train/loss"  # the first metric of every line of training
SAMPLES_FILE = "samples.jsonl"
_NUMBER = rb'(?:-?(?:0|[1-9]\d*)(?:\.\d+)?(?:e[+-]?\d+)?|"(?:NaN|-?Infinity)")'
_METRICS = re.compile(  # a line as JSONL writes it
    b''.join((
        rb'\{"step": (\d+), "tokens": \d+, "time": ', _NUMBER, rb', "attempt": \d+, "([^"\\]+)": ', _NUMBER,
        rb'(?:, "[^"\\]*": ', _NUMBER, rb')*\}\n',
    ))
)  # fmt: skip
_HEAD = ("step", "tokens", "time", "attempt")
_TEXTS = ("text", "tag")
_WHOLE = ("step", "tokens", "attempt")
_SPECIAL = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


@component("results_subscriber", "jsonl", runtime_args=("run_path",))
class JSONL:
    """Writes metrics.jsonl and samples.jsonl in the run folder.

    A metrics line is flat JSON: `{"step": 10, "tokens": 40960, "time": 1767225600.5, "attempt": 1, "train/loss": 7.1}`.
    Numbers are written so that they read back bit for bit. JSON has no NaN or infinity; those are the strings "NaN",
    "Infinity" and "-Infinity", which Python's and pandas' float conversion understand (`read_lines` undoes it).

    A line is handed to the system when it is published (it survives the death of the process) and is forced to disk at
    every checkpoint and at the end. When a run continues from step k, lines beyond k are dropped, and so are damaged
    lines and all but the last of lines that are there twice. Logged steps up to k without a line are named, in the log
    and as `metrics_missing` in run.json.
    Lines that cannot be written, e.g. on a full disk, are kept in memory and tried again at the next message.

    Args:
        run_path: The run folder; known at run time.
    """

    synchronous = True
    once_per_run = True

    def __init__(self, run_path: Path) -> None:
        self._run = RunFolder(run_path)
        self._metrics = _LineFile(Path(run_path) / METRICS_FILE)
        self._samples = _LineFile(Path(run_path) / SAMPLES_FILE)

    @property
    def waiting(self) -> int:
        """Lines that could not be written yet."""
        return len(self._metrics.waiting) + len(self._samples.waiting)

    @property
    def lost_metrics(self) -> int:
        """Lines of metrics.jsonl that could not be written or brought to the disk."""
        return self._metrics.lost

    def receive(self, message: Any) -> None:
        if isinstance(message, MetricsLogged):
            head = {"step": message.step, "tokens": message.tokens, "time": message.time, "attempt": message.attempt}
            self._metrics.add({**head, **{name: message.values[name] for name in message.values if name not in head}})
        elif isinstance(message, TextLogged):
            self._samples.add({"step": message.step, "tag": message.tag, "text": message.text})
        elif isinstance(message, RunStarted):
            rewound = self._metrics.rewind(message.start_step)
            self._samples.rewind(message.start_step)
            self._account(message, rewound)
        elif isinstance(message, (CheckpointSaved, RunEnded)):
            self._metrics.sync()
            self._samples.sync()

    def _account(self, message: RunStarted, rewound: Rewound) -> None:
        """Say and record in run.json which lines of earlier attempts are lost."""
        every = message.resolved.get("train.log_every")
        if not isinstance(every, int):
            return
        step, state = message.start_step, self._run.read()
        intervals = intervals_until(state.get("log_every"), step)
        gaps = ranges(missing_steps(rewound.trained, step, intervals, every), rewound.trained)
        fields: dict[str, Any] = {"log_every": with_interval(intervals, step, every)}
        if gaps or state.get("metrics_missing"):
            fields["metrics_missing"] = gaps
        if rewound.damaged or rewound.doubled:
            fields["metrics_dropped"] = {"damaged": rewound.damaged, "doubled": rewound.doubled, "at_step": step}
            logger.warning(
                "%s: %d damaged and %d doubled lines are dropped", METRICS_FILE, rewound.damaged, rewound.doubled
            )
        if gaps:
            logger.warning(
                "%s has no line for %s: the run continues, and its record has a gap, which run.json names",
                METRICS_FILE, text_of(gaps),
            )  # fmt: skip
        self._run.note(**fields)

    def close(self) -> None:
        try:
            self._metrics.close()
        finally:
            self._samples.close()


class _LineFile(GrowingFile):
    """A file of JSON lines."""

    def add(self, record: Mapping[str, Any]) -> None:
        self.write(json.dumps({name: _as_json(value) for name, value in record.items()}).encode() + b"\n")

    def rewind(self, step: int) -> Rewound:
        """Drop the lines beyond `step` and whatever a killed process left unfinished."""
        self.release()
        return rewind(self.path, step)


def read_lines(path: Path, containing: bytes = b"") -> Iterator[dict[str, Any]]:
    """The records of metrics.jsonl or samples.jsonl, "NaN" and "Infinity" as floats; damaged lines are left out.

    Args:
        path: The file.
        containing: Read only lines with these bytes in them, which is quick in a long file.
    """
    with open(path, "rb") as file:
        for line in file:
            record = parse_line(line) if containing in line else None
            if record is not None:
                yield record


def read_last_lines(path: Path, most_bytes: int, containing: bytes = b"") -> list[dict[str, Any]]:
    """The records in the last bytes of metrics.jsonl or samples.jsonl, as `read_lines` gives them; oldest first.

    Args:
        path: The file.
        most_bytes: How much of its end is read, however long it is.
        containing: Read only lines with these bytes in them.
    """
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - most_bytes - 1))
        lines = file.read(most_bytes + 1).split(b"\n")
    records = [parse_line(line) for line in lines[size > most_bytes :] if line and containing in line]
    return [record for record in records if record is not None]


def parse_line(line: bytes) -> dict[str, Any] | None:
    """The record in a line of metrics.jsonl or samples.jsonl, "NaN" and "Infinity" as floats.

    None where the line is damaged: it is no JSON object or has no whole number as step. A value of another type than
    its name has, such as a text as loss, is left out.
    """
    record = _record(line)
    if record is None or type(record.get("step")) is not int or not 0 <= record["step"] < MOST_NUMBER:
        return None
    return {name: fitting for name, value in record.items() if (fitting := _fitting(name, value)) is not None}


class Rewound(NamedTuple):
    """What was found in a file of lines.

    Args:
        trained: Steps with a line of training that stays.
        damaged: Lines that were no records and are dropped; not counting a last one that was never finished.
        doubled: Lines that were there again further on and are dropped.
    """

    trained: set[int]
    damaged: int = 0
    doubled: int = 0


def rewind(path: Path, step: int) -> Rewound:
    """Drop the lines beyond `step`, damaged and doubled lines and a torn last line; at step 0 all. No file: nothing.

    What is left is always a whole old or a whole new file: lines to drop are usually the last ones, and cutting a file
    is one operation; if lines to keep follow, the file is written anew beside and renamed.
    """
    if not path.exists():
        return Rewound(set())
    keep, tail, rewound = (0, b"", Rewound(set())) if step == 0 else _scan(path, step)
    if keep == path.stat().st_size and not tail:
        return rewound
    if not tail:
        os.truncate(path, keep)
        return rewound
    aside = path.with_name(path.name + ".tmp")
    with open(path, "rb") as old, open(aside, "wb") as new:
        _copy(old, new, keep)
        new.write(tail)
        new.flush()
        os.fsync(new.fileno())
    os.replace(aside, path)
    return rewound


def _scan(path: Path, step: int) -> tuple[int, bytes, Rewound]:
    """Bytes from the start that stay as they are, the lines to keep after the first to drop, and what was found."""
    last: dict[Any, int] = {}
    keys: list[Any] = []  # of each line: what it is a line of, None where it goes
    damaged = doubled = 0
    torn = False
    with open(path, "rb") as file:
        for number, line in enumerate(file):
            line_step, kind = _identity(line, number)
            damaged += line_step is None
            torn = line_step is None and not line.endswith(b"\n")  # the last: a process was killed over it
            key = (line_step, kind) if line_step is not None and line_step <= step else None
            keys.append(key)
            if key is not None:
                doubled += key in last
                last[key] = number
    keep, tail, dropped = 0, [], False
    with open(path, "rb") as file:
        for number, (line, key) in enumerate(zip(file, keys)):
            if key is None or last[key] != number:
                dropped = True
            elif dropped or not line.endswith(b"\n"):
                dropped = True
                tail.append(line if line.endswith(b"\n") else line + b"\n")
            else:
                keep += len(line)
    trained = {key[0] for key in last if key[1] == TRAINING}
    return keep, b"".join(tail), Rewound(trained, damaged - torn, doubled)


def _identity(line: bytes, number: int) -> tuple[int | None, Any]:
    """A line's step, None in a damaged one; and its kind, of training or of one evaluator, by its first metric.

    A text, or what has no metric, is the only one of its kind.
    """
    if match := _METRICS.fullmatch(line):  # several times as quick as reading it
        return int(match[1]), match[2].decode(errors="replace")
    record = parse_line(line)
    if record is None:
        return None, None
    first = next((name for name in record if name not in _HEAD), "text")
    return record["step"], number if first in _TEXTS else first


def _record(line: bytes) -> dict[str, Any] | None:
    try:
        return parse_json(line, dict[str, Any])
    except JSONError:
        return None


def _fitting(name: str, value: Any) -> Any:
    """The value as it was published; None where nothing of its type has that name."""
    if isinstance(value, str):
        return value if name in _TEXTS else _SPECIAL.get(value)
    if name in _TEXTS or not isinstance(value, (int, float)):
        return None
    if name in _WHOLE and type(value) is not int:
        return None
    return value if isinstance(value, float) or abs(value) < MOST_NUMBER else None


def _as_json(value: Any) -> Any:
    if isinstance(value, (str, bool, int)):
        return value
    number = float(value)
    if math.isfinite(number):
        return number
    return "NaN" if math.isnan(number) else "Infinity" if number > 0 else "-Infinity"


def _copy(source: Any, target: Any, count: int) -> None:
    while count > 0:
        block = source.read(min(count, shutil.COPY_BUFSIZE))  # type: ignore[attr-defined]
        target.write(block)
        count -= len(block)
