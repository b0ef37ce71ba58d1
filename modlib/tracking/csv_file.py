"""metrics.csv: every logged number as one wide table, for spreadsheets and pandas."""

from __future__ import annotations

import contextlib
import csv
import io
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from modlib.components import component
from modlib.tracking.messages import CheckpointSaved, MetricsLogged, RunEnded, RunStarted

CSV_FILE = "metrics.csv"
HEAD = ("step", "tokens", "time", "attempt")


@component("results_subscriber", "csv", runtime_args=("run_path",))
class CSV:
    """Writes metrics.csv in the run folder: a row for each line of metrics.jsonl, a column for each metric.

    Columns are in the order in which metrics first appear; a cell is empty where a row has no such metric. Numbers read
    back bit for bit; "nan", "inf" and "-inf" are what pandas and Python's float understand. A metric that appears for
    the first time adds a column: the file is written anew beside and renamed, which happens a few times in a run.

    A row is handed to the system when it is published and forced to disk at every checkpoint and at the end. When a run
    goes on from step k, rows beyond k, the columns that only they have, and a torn last row are dropped, so that the
    file ends as that of an uninterrupted run. Rows that cannot be written are tried again at the next message.

    Args:
        run_path: The run folder; known at run time.
    """

    synchronous = True
    once_per_run = True

    def __init__(self, run_path: Path) -> None:
        self._path = Path(run_path) / CSV_FILE
        self._columns: list[str] = []
        self._waiting: list[dict[str, str]] = []
        self._descriptor: int | None = None
        self._is_started = False

    def receive(self, message: Any) -> None:
        if isinstance(message, RunStarted):
            self._rewind(message.start_step)
        elif isinstance(message, MetricsLogged):
            head = {"step": message.step, "tokens": message.tokens, "time": message.time, "attempt": message.attempt}
            self._waiting.append({name: _cell(value) for name, value in (head | {**message.values, **head}).items()})
            self._write()
        elif isinstance(message, (CheckpointSaved, RunEnded)):
            self._sync()

    def close(self) -> None:
        try:
            self._sync()
        finally:
            self._close_descriptor()

    def _rewind(self, step: int) -> None:
        self._close_descriptor()
        self._is_started = True
        columns, rows = read_rows(self._path)
        kept = [row for row in rows if int(row["step"]) <= step] if step else []
        used = {name for row in kept for name in row}
        self._columns = [name for name in columns if name in used]
        if kept or self._path.exists():
            self._rewrite(kept)

    def _write(self) -> None:
        if not self._waiting:
            return
        if not self._is_started:  # whoever publishes metrics alone still gets the rows of an earlier file kept
            self._columns, _ = read_rows(self._path)
            self._is_started = True
        new = dict.fromkeys(name for row in self._waiting for name in row if name not in self._columns)
        if new:
            self._close_descriptor()
            _, rows = read_rows(self._path)
            self._columns += new
            try:
                self._rewrite([*rows, *self._waiting])
            except OSError:
                del self._columns[-len(new) :]
                raise
            self._waiting.clear()
            return
        if self._descriptor is None:
            self._descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        while self._waiting:
            self._append(_line(self._columns, self._waiting[0]))
            del self._waiting[0]

    def _append(self, line: bytes) -> None:
        assert self._descriptor is not None
        size = os.fstat(self._descriptor).st_size
        try:
            written = os.write(self._descriptor, line)
            if written < len(line):
                raise OSError(f"only {written} of {len(line)} bytes could be written to {self._path}")
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(self._descriptor, size)
            raise

    def _rewrite(self, rows: Iterable[Mapping[str, str]]) -> None:
        """The whole file anew; readers see the old one or the new one."""
        aside = self._path.with_name(self._path.name + ".tmp")
        with open(aside, "wb") as file:
            if self._columns:
                file.write(_line(self._columns, dict(zip(self._columns, self._columns))))
            file.writelines(_line(self._columns, row) for row in rows)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, self._path)

    def _sync(self) -> None:
        self._write()
        if self._descriptor is not None:
            os.fsync(self._descriptor)

    def _close_descriptor(self) -> None:
        if self._descriptor is not None:
            descriptor, self._descriptor = self._descriptor, None
            os.close(descriptor)


def read_rows(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """The columns of metrics.csv and its rows without their empty cells; a torn last row is left out."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return [], []
    whole = text[: text.rfind("\n") + 1]
    lines = [line for line in csv.reader(io.StringIO(whole)) if line]
    if not lines or lines[0][:1] != ["step"]:
        return [], []
    columns = lines[0]
    rows = [
        {name: cell for name, cell in zip(columns, line) if cell}
        for line in lines[1:]
        if len(line) == len(columns) and line[0].isdecimal()
    ]
    return columns, rows


def _line(columns: Iterable[str], row: Mapping[str, str]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow([row.get(name, "") for name in columns])
    return text.getvalue().encode()


def _cell(value: Any) -> str:
    return str(value) if isinstance(value, (int, str)) else repr(float(value))
