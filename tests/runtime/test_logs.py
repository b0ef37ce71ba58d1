"""What reaches the terminal, the rank's file and the launcher's record; and that secrets reach none of them."""

from __future__ import annotations

import json
import logging
import os
import pty
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from modlib.runtime.errors import ConfigError, DataError, Preempted
from modlib.runtime.logs import exit_code_of, report_error, start_logging, stop_logging

logger = logging.getLogger("modlib")


@pytest.fixture(autouse=True)
def _stop() -> Iterator[None]:
    yield
    stop_logging()


def failed(kind: type[BaseException], text: str) -> BaseException:
    try:
        raise kind(text)
    except BaseException as error:
        return error


def test_plain_messages_warnings_and_the_rank(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    start_logging()
    logger.info("tokens %d", 5)
    start_logging(rank=1, world_size=2, log_file=tmp_path / "rank-1.out")
    logger.warning("slow")
    logger.debug("not shown")
    assert capsys.readouterr().err == "tokens 5\nwarning: [rank 1] slow\n"
    assert (tmp_path / "rank-1.out").read_text().endswith(" [rank 1] WARNING slow\n")


def test_secrets_are_redacted_in_messages_and_tracebacks(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    monkeypatch.setenv("WANDB_API_KEY", "canary-1234567")
    monkeypatch.setenv("MY_TOKEN", "canary-1234567-longer")
    monkeypatch.setenv("SHORT_SECRET", "true")
    start_logging(log_file=tmp_path / "log")
    logger.info("true key %s", "canary-1234567-longer")
    report_error(failed(RuntimeError, "denied for canary-1234567"), record_path=tmp_path / "record.json")
    report_error(failed(DataError, "denied for canary-1234567"))
    seen = capsys.readouterr().err + (tmp_path / "log").read_text() + (tmp_path / "record.json").read_text()
    assert "canary" not in seen
    assert "true key ***\n" in seen


def test_an_expected_error_is_its_text_on_the_terminal_and_a_traceback_in_the_file(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    start_logging(log_file=tmp_path / "log")
    assert report_error(failed(DataError, "dataset (3) must be at least 8")) == 3
    assert capsys.readouterr().err == "error: dataset (3) must be at least 8\n"
    assert "Traceback" in (tmp_path / "log").read_text()


def test_an_unexpected_error_shows_its_traceback(capsys: pytest.CaptureFixture[str]):
    start_logging()
    assert report_error(failed(KeyError, "shape")) == 1
    assert "Traceback" in capsys.readouterr().err


def test_a_rank_of_several_leaves_a_record_and_keeps_the_terminal_clean(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    start_logging(rank=1, world_size=2, log_file=tmp_path / "log")
    assert report_error(failed(DataError, "too short"), record_path=tmp_path / "e.json", rank=1) == 3
    record = json.loads((tmp_path / "e.json").read_text())
    assert (record["rank"], record["message"], record["exit_code"], record["pid"]) == (1, "too short", 3, os.getpid())
    assert capsys.readouterr().err == ""
    assert "too short" in (tmp_path / "log").read_text()


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError("x"), 2),
        (Preempted("x"), 75),
        (ValueError("x"), 1),
        (KeyboardInterrupt(), 130),
        (SystemExit(7), 7),
        (SystemExit("text"), 1),
        (SystemExit(), 0),
    ],
)
def test_exit_codes(error: BaseException, code: int):
    assert exit_code_of(error) == code


def test_where_stderr_is_the_log_file_each_message_is_there_once(tmp_path: Path):
    code = (
        "import sys, logging, pathlib; from modlib.runtime.logs import start_logging;"
        "start_logging(log_file=pathlib.Path(sys.argv[1])); logging.getLogger('modlib').info('once')"
    )
    path = tmp_path / "log"
    with open(path, "ab") as file:
        subprocess.run([sys.executable, "-c", code, str(path)], stderr=file, check=True)
    assert path.read_text().count("once") == 1


@pytest.mark.parametrize("target", ["closed", "/dev/full"])
def test_a_closed_or_full_terminal_does_not_disturb(target: str, tmp_path: Path):
    code = (
        "import sys, logging, pathlib, os; from modlib.runtime.logs import start_logging\n"
        "start_logging(log_file=pathlib.Path(sys.argv[1]))\n"
        "if sys.argv[2] == 'closed': sys.stderr.close()\n"
        "else: os.dup2(os.open(sys.argv[2], os.O_WRONLY), 2)\n"
        "logging.getLogger('modlib').warning('still here'); os._exit(9)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "log"), target])
    assert done.returncode == 9
    assert "still here" in (tmp_path / "log").read_text()


def test_colour_only_on_a_terminal():
    code = (
        "import logging; from modlib.runtime.logs import start_logging; start_logging();"
        "logging.getLogger('modlib').warning('w'); logging.getLogger('modlib').info('i')"
    )
    ours, theirs = pty.openpty()
    environment = {k: v for k, v in os.environ.items() if k != "NO_COLOR"}
    subprocess.run([sys.executable, "-c", code], stderr=theirs, check=True, env=environment)
    os.close(theirs)
    assert os.read(ours, 1000) == b"\x1b[33mwarning:\x1b[0m w\r\ni\r\n"
    os.close(ours)
