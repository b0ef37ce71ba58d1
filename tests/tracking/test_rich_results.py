"""The table of results, and that no progress means no progress."""

from __future__ import annotations

import io
import math
import sys
from pathlib import Path

import pytest

from modlib.tracking.broker import Broker
from modlib.tracking.dummy import DummyProgress
from modlib.tracking.jsonl import JSONL
from modlib.tracking.messages import MetricsLogged, Notice, RunEnded, RunStarted, StepDone
from modlib.tracking.rich_progress import RichProgress
from modlib.tracking.rich_results import RichResults


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def publish(subscriber: object, tmp_path: Path) -> None:
    for message in (
        RunStarted("run", tmp_path, 1, 0, 20, 100),
        MetricsLogged(5, 500, 1.0, 1, {"train/loss": 4.0, "train/lr": 1e-3}),
        MetricsLogged(10, 1000, 2.0, 1, {"val/validation/loss": 3.5}),
        MetricsLogged(20, 2000, 3.0, 1, {"train/loss": 3.0, "train/lr": 1e-3}),
        MetricsLogged(20, 2000, 3.0, 1, {"val/validation/loss": 3.25, "val/validation/perplexity": math.inf}),
        RunEnded("finished", 20),
    ):
        subscriber.receive(message)  # type: ignore[attr-defined]
    subscriber.close()  # type: ignore[attr-defined]


def test_plain_lines_where_there_is_no_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    publish(RichResults(tmp_path), tmp_path)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "results step=10 val/validation/loss=3.5000",
        "results step=10 train/loss=4.0000",
        "results step=10 train/lr=1.00e-03",
        "results step=20 val/validation/loss=3.2500 (-0.2500)",
        "results step=20 val/validation/perplexity=inf",
        "results step=20 train/loss=3.0000 (-1.0000)",
        "results step=20 train/lr=1.00e-03 (±0.00e+00)",
    ]


def test_the_end_shows_what_no_evaluation_has_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = RichResults(tmp_path, style="table")
    results.receive(RunStarted("run", tmp_path, 1, 0, 20, 100))
    results.receive(MetricsLogged(5, 500, 1.0, 1, {"train/loss": 4.0}))
    results.receive(RunEnded("stopped by SIGTERM", 6))
    err = capsys.readouterr().err
    assert "run, stopped by SIGTERM at step 6" in err
    assert "4.0000" in err


def test_every_log_line_shows_when_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    publish(RichResults(tmp_path, every="log"), tmp_path)
    assert "results step=5 train/loss=4.0000" in capsys.readouterr().err.splitlines()


def test_a_table_on_a_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    publish(RichResults(tmp_path), tmp_path)
    text = terminal.getvalue()
    assert "\x1b[" in text
    assert "run, step 10" in text
    assert "run, step 20" in text
    assert "val/validation/loss" in text
    assert "-0.2500" in text


def test_it_goes_with_a_live_progress_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    live, results = RichProgress(tmp_path), RichResults(tmp_path)
    started = RunStarted("run", tmp_path, 1, 0, 20, 100)
    live.receive(started)
    results.receive(started)
    results.receive(MetricsLogged(10, 1000, 2.0, 1, {"val/validation/loss": 3.5}))
    live.receive(RunEnded("finished", 20))
    assert "3.5000" in terminal.getvalue()
    assert sys.stderr is terminal


def test_no_progress_shows_nothing_and_any_number_combine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broker = Broker.of([DummyProgress, DummyProgress, JSONL], run_path=tmp_path)
    broker.publish(RunStarted("run", tmp_path, 1, 0, 20, 100))
    broker.publish(StepDone(1))
    broker.publish(MetricsLogged(1, 1, 1.0, 1, {"train/loss": 1.0}))
    broker.publish(Notice("hello"))
    broker.close()
    assert broker.missed == {}
    assert capsys.readouterr() == ("", "")
    assert (tmp_path / "metrics.jsonl").exists()
