"""metrics.jsonl: every logged number on disk before training goes on, the source of truth of a run."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from modlib.components import component
from modlib.tracking.messages import CheckpointSaved, MetricsLogged, RunEnded, RunStarted, TextLogged

METRICS_FILE = "metrics.jsonl"
SAMPLES_FILE = "samples.jsonl"
_STEP_FIRST = re.compile(rb'\{"step": (\d+)[,}]')  # how every line written here starts
_SPECIAL = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


@component("results_subscriber", "jsonl", runtime_args=("run_path",))
class JSONL:
    """Writes metrics.jsonl and samples.jsonl in the run folder.

    A metrics line is flat JSON: `{"step": 10, "tokens": 40960, "time": 1767225600.5, "attempt": 1, "train/loss": 7.1}`.
    Numbers are written so that they read back bit for bit. JSON has no NaN or infinity; those are the strings "NaN",
    "Infinity" and "-Infinity", which Python's and pandas' float conversion understand (`read_lines` undoes it).

    A line is handed to the system when it is published (it survives the death of the process) and is forced to disk at
    every checkpoint and at the end. When a run goes on from step k, lines beyond k and a torn last line are dropped.
    Lines that cannot be written, e.g. on a full disk, are kept in memory and tried again at the next message.

    Args:
        run_path: The run folder; known at run time.
    """

    synchronous = True
    once_per_run = True

    def __init__(self, run_path: Path) -> None:
        self._metrics = _LineFile(Path(run_path) / METRICS_FILE)
        self._samples = _LineFile(Path(run_path) / SAMPLES_FILE)

    def receive(self, message: Any) -> None:
        if isinstance(message, MetricsLogged):
            head = {"step": message.step, "tokens": message.tokens, "time": message.time, "attempt": message.attempt}
            self._metrics.add({**head, **{name: message.values[name] for name in message.values if name not in head}})
        elif isinstance(message, TextLogged):
            self._samples.add({"step": message.step, "tag": message.tag, "text": message.text})
        elif isinstance(message, RunStarted):
            self._metrics.rewind(message.start_step)
            self._samples.rewind(message.start_step)
        elif isinstance(message, (CheckpointSaved, RunEnded)):
            self._metrics.sync()
            self._samples.sync()

    def close(self) -> None:
        try:
            self._metrics.close()
        finally:
            self._samples.close()


class _LineFile:
    """A file of JSON lines that only ever grows by whole lines."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None
        self._size = 0
        self._waiting: deque[bytes] = deque()

    def add(self, record: Mapping[str, Any]) -> None:
        self._waiting.append(json.dumps({name: _as_json(value) for name, value in record.items()}).encode() + b"\n")
        self._write()

    def rewind(self, step: int) -> None:
        """Drop the lines beyond `step` and whatever a killed process left unfinished."""
        self._close_descriptor()
        rewind(self._path, step)

    def sync(self) -> None:
        self._write()
        if self._descriptor is not None:
            os.fsync(self._descriptor)

    def close(self) -> None:
        try:
            self.sync()
        finally:
            self._close_descriptor()

    def _write(self) -> None:
        if not self._waiting:
            return
        if self._descriptor is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            self._size = os.fstat(self._descriptor).st_size
        while self._waiting:
            line = self._waiting[0]
            try:
                written = os.write(self._descriptor, line)
                if written < len(line):
                    raise OSError(f"only {written} of {len(line)} bytes could be written to {self._path}")
            except OSError:
                self._drop_partial_line()
                raise
            self._size += len(line)
            self._waiting.popleft()

    def _drop_partial_line(self) -> None:
        assert self._descriptor is not None
        if os.fstat(self._descriptor).st_size > self._size:
            os.ftruncate(self._descriptor, self._size)

    def _close_descriptor(self) -> None:
        if self._descriptor is not None:
            descriptor, self._descriptor = self._descriptor, None
            os.close(descriptor)


def read_lines(path: Path, containing: bytes = b"") -> Iterator[dict[str, Any]]:
    """The records of metrics.jsonl or samples.jsonl, "NaN" and "Infinity" as floats; damaged lines are left out.

    Args:
        path: The file.
        containing: Read only lines with these bytes in them, which is quick in a long file.
    """
    with open(path, "rb") as file:
        for line in file:
            record = _record(line) if containing in line else None
            if record is not None:
                yield _with_floats(record)


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
    records = [_record(line) for line in lines[size > most_bytes :] if line and containing in line]
    return [_with_floats(record) for record in records if record is not None]


def rewind(path: Path, step: int) -> None:
    """Drop the lines beyond `step`, damaged lines and a torn last line; at step 0 all of them. Missing file: nothing.

    What is left is always a whole old or a whole new file: lines to drop are usually the last ones, and cutting a file
    is one operation; if lines to keep follow, the file is written anew beside and renamed.
    """
    if not path.exists():
        return
    keep, tail = (0, b"") if step == 0 else _scan(path, step)
    if keep == path.stat().st_size and not tail:
        return
    if not tail:
        os.truncate(path, keep)
        return
    aside = path.with_name(path.name + ".tmp")
    with open(path, "rb") as old, open(aside, "wb") as new:
        _copy(old, new, keep)
        new.write(tail)
        new.flush()
        os.fsync(new.fileno())
    os.replace(aside, path)


def _scan(path: Path, step: int) -> tuple[int, bytes]:
    """Bytes from the start that stay as they are, and the lines to keep after the first line to drop."""
    keep, tail, dropped = 0, [], False
    with open(path, "rb") as file:
        for line in file:
            match = _STEP_FIRST.match(line)
            if match and line.endswith(b"}\n"):
                line_step: int | None = int(match[1])
            else:
                record = _record(line)
                line_step = record["step"] if record and isinstance(record.get("step"), int) else None
            if line_step is None or line_step > step:
                dropped = True
            elif dropped or not line.endswith(b"\n"):
                dropped = True
                tail.append(line if line.endswith(b"\n") else line + b"\n")
            else:
                keep += len(line)
    return keep, b"".join(tail)


def _record(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None


def _with_floats(record: dict[str, Any]) -> dict[str, Any]:
    return {
        name: _SPECIAL.get(value, value) if isinstance(value, str) and name not in ("text", "tag") else value
        for name, value in record.items()
    }


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
