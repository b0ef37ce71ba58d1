"""Writes that may fail: one warning of a kind, a count, and what is said at the end."""

from __future__ import annotations

import errno
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from modlib.runtime import bookkeeping, faults
from modlib.runtime.bookkeeping import losses, write_or_warn
from modlib.runtime.errors import RunFolderError
from modlib.runtime.logs import report_error, start_logging, stop_logging
from modlib.runtime.run_folder import RunFolder


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    bookkeeping.begin()
    yield
    stop_logging()
    bookkeeping.begin()


def full(name: str, operation: str) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_one_warning_of_a_kind_and_all_are_counted(caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(3):
        with write_or_warn("exit.json"):
            full("", "")
    with write_or_warn("run.json"):
        raise OSError(errno.EROFS, "Read-only file system")
    assert [record.message for record in caplog.records] == [
        "exit.json could not be written (No space left on device); that ends nothing, and is counted from here on",
        "run.json could not be written (Read-only file system); that ends nothing, and is counted from here on",
    ]
    assert losses() == [
        "exit.json: 3 writes failed (No space left on device)",
        "run.json: 1 write failed (Read-only file system)",
    ]
    bookkeeping.begin()
    assert losses() == []


def test_other_errors_are_no_failures_to_write() -> None:
    with pytest.raises(RunFolderError), write_or_warn("run.json"):
        raise RunFolderError("moved away")
    with pytest.raises(KeyError), write_or_warn("run.json"):
        raise KeyError("a bug")
    assert losses() == []


def test_what_run_json_could_not_take_comes_with_the_next(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    run.create()
    run.update(name="run", step=4)
    with faults.installed("fs.operation", full):
        run.note(step=8, host="here")
        run.note(step=12)
        run.attempt(1).finish("finished", 12, 0)
    assert run.read() == {"name": "run", "step": 4}
    assert losses() == [
        "run.json: 2 writes failed (No space left on device)",
        "exit.json: 1 write failed (No space left on device)",
    ]
    run.note(status="finished")
    assert run.read() == {"name": "run", "step": 12, "host": "here", "status": "finished"}
    assert losses() == ["exit.json: 1 write failed (No space left on device)"]


def test_a_log_file_that_takes_nothing_more(capfd: pytest.CaptureFixture[str]) -> None:
    start_logging(log_file=Path("/dev/full"))
    logging.getLogger("modlib").info("one")
    logging.getLogger("modlib").info("two")
    stop_logging()  # closes it with unwritten bytes
    said = capfd.readouterr().err
    assert "one\n" in said
    assert "two\n" in said
    assert said.count("the log file could not be written (No space left on device)") == 1
    assert len(losses()) == 1


def test_a_log_file_that_cannot_be_opened(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    start_logging(log_file=tmp_path / "gone" / "rank-0.out")
    logging.getLogger("modlib").info("said all the same")
    said = capfd.readouterr().err
    assert "the log file could not be written (No such file or directory)" in said
    assert "said all the same" in said


def test_the_record_of_an_error_that_cannot_be_written(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    start_logging()
    with faults.installed("fs.operation", full):
        assert report_error(RunFolderError("it was moved"), record_path=tmp_path / "rank-0.error.json") == 4
    said = capfd.readouterr().err
    assert "the record of this error" in said
    assert "Traceback" not in said
