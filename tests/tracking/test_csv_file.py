"""metrics.csv: the same numbers as metrics.jsonl, whole after every kill, and equal to an uninterrupted run's."""

from __future__ import annotations

import csv
import math
import os
from pathlib import Path
from typing import Any

import pytest

from modlib.tracking.broker import Broker
from modlib.tracking.csv_file import CSV, read_rows
from modlib.tracking.jsonl import JSONL, read_lines
from modlib.tracking.messages import CheckpointSaved, MetricsLogged, RunEnded, RunStarted


def started(path: Path, step: int) -> RunStarted:
    return RunStarted("run", path, 1, step, 12, 100)


def metrics(step: int) -> MetricsLogged:
    values = {"train/loss": 10 / 3 / step}
    if step % 4 == 0:
        values["val/a, b/loss"] = math.pi / step  # a comma in a name
    if step > 8:
        values["late"] = step
    return MetricsLogged(step, step * 100, 1767225600.0 + step / 7, 1, values)


def write(path: Path, begin: int, end: int) -> CSV:
    """One attempt; the subscriber is left as a kill would leave it."""
    subscriber = CSV(run_path=path)
    subscriber.receive(started(path, begin))
    for step in range(begin + 1, end + 1):
        subscriber.receive(metrics(step))
    return subscriber


def content(path: Path) -> bytes:
    return (path / "metrics.csv").read_bytes()


@pytest.fixture
def whole(tmp_path: Path) -> bytes:
    (tmp_path / "whole").mkdir()
    write(tmp_path / "whole", 0, 12).close()
    return content(tmp_path / "whole")


def test_every_number_reads_back_as_from_metrics_jsonl(tmp_path: Path) -> None:
    broker = Broker.of([CSV, JSONL], run_path=tmp_path)
    broker.publish(started(tmp_path, 0))
    for step in range(1, 13):
        broker.publish(metrics(step))
    broker.publish(MetricsLogged(12, 2**60 + 1, 1.5, 1, {"odd/nan": math.nan, "odd/inf": -math.inf}))
    broker.publish(RunEnded("finished", 12))
    broker.close()
    assert broker.missed == {}
    with open(tmp_path / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    lines = list(read_lines(tmp_path / "metrics.jsonl"))
    assert len(rows) == len(lines) == 13
    for row, line in zip(rows, lines):
        numbers = {name: int(cell) if cell.isdecimal() else float(cell) for name, cell in row.items() if cell}
        assert repr(numbers) == repr({name: line[name] for name in numbers})
        assert numbers.keys() == line.keys()
    names = ["train/loss", "val/a, b/loss", "late", "odd/nan", "odd/inf"]
    assert list(rows[0]) == ["step", "tokens", "time", "attempt", *names]


@pytest.mark.parametrize("killed_at", [5, 8, 9, 12])
@pytest.mark.parametrize("torn", [0, 3])
def test_a_resumed_run_ends_with_the_file_of_an_uninterrupted_one(
    tmp_path: Path, whole: bytes, killed_at: int, torn: int
) -> None:
    write(tmp_path, 0, killed_at)
    if torn:
        (tmp_path / "metrics.csv").write_bytes(content(tmp_path)[:-torn])
    begin = 4 if killed_at < 9 else 8
    subscriber = write(tmp_path, begin, begin)
    assert content(tmp_path).endswith(b"\n")
    assert [int(row["step"]) for row in read_rows(tmp_path / "metrics.csv")[1]] == list(range(1, begin + 1))
    subscriber.close()
    write(tmp_path, begin, 12).close()
    assert content(tmp_path) == whole


def test_a_run_that_starts_over_replaces_all(tmp_path: Path, whole: bytes) -> None:
    write(tmp_path, 0, 7).close()
    write(tmp_path, 0, 12).close()
    assert content(tmp_path) == whole


def test_a_reader_sees_whole_lines_at_every_moment(tmp_path: Path) -> None:
    subscriber = write(tmp_path, 0, 0)
    for step in range(1, 13):
        subscriber.receive(metrics(step))
        columns, rows = read_rows(tmp_path / "metrics.csv")
        assert len(rows) == step
        assert content(tmp_path).count(b"\n") == step + 1
        assert "late" not in columns or step > 8
    subscriber.receive(CheckpointSaved(12, tmp_path, 0.1, 1))
    subscriber.close()


@pytest.mark.parametrize("step", [3, 4])  # a row that is appended, and one that needs a new column
def test_rows_that_cannot_be_written_come_with_the_next(
    tmp_path: Path, whole: bytes, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    subscriber = write(tmp_path, 0, step - 1)

    def full(*_: Any) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        patch.setattr(os, "replace", full)
        with pytest.raises(OSError, match="No space left"):
            subscriber.receive(metrics(step))
    for later in range(step + 1, 13):
        subscriber.receive(metrics(later))
    subscriber.close()
    assert content(tmp_path) == whole


def test_a_half_written_row_is_taken_back(tmp_path: Path, whole: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    subscriber = write(tmp_path, 0, 2)
    before, write_all = content(tmp_path), os.write
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda descriptor, data: write_all(descriptor, data[:4]))
        with pytest.raises(OSError, match=r"only 4 of \d+ bytes could be written to "):
            subscriber.receive(metrics(3))
    assert content(tmp_path) == before
    for step in range(4, 13):
        subscriber.receive(metrics(step))
    subscriber.close()
    assert content(tmp_path) == whole
