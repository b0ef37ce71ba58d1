"""What W&B has of a run, by the marks in its folder and by metrics.jsonl."""

from __future__ import annotations

from pathlib import Path

import pytest

from modlib.tracking.jsonl import JSONL
from modlib.tracking.messages import MetricsLogged, TextLogged
from modlib.tracking.wandb_sent import Counts, Sent, count, given_before, read_sent, unsent, write_sent


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Attempt 1 logged steps 1 to 100, one a second, attempt 2 the steps from 101 to 103; two texts."""
    (tmp_path / "wandb").mkdir()
    lines = JSONL(run_path=tmp_path)
    for step in range(1, 104):
        lines.receive(MetricsLogged(step, step, 1000.0 + step, 1 if step <= 100 else 2, {"train/loss": 1.0}))
    for step in (50, 100):
        lines.receive(TextLogged(step, "sample", f"at {step}"))
    lines.close()
    return tmp_path


def steps(run: Path, sent: Sent) -> list[tuple[str, int]]:
    return [(kind, record["step"]) for kind, record in unsent(run, sent)]


def test_without_marks_everything_is_missing(run: Path) -> None:
    assert read_sent(run) == Sent()
    assert steps(run, Sent()) == [*(("metrics", step) for step in range(1, 104)), ("text", 50), ("text", 100)]
    assert count(run) == Counts(103, 0)
    assert given_before(run, 2, 102) == (2, 2)


def test_marks_count_from_the_first_line_of_each_attempt(run: Path) -> None:
    write_sent(run, Sent({1: 99, 2: 1}, 1))
    assert steps(run, read_sent(run)) == [("metrics", 100), ("metrics", 102), ("metrics", 103), ("text", 100)]
    assert count(run) == Counts(103, 100)


def test_marks_of_lines_that_a_later_attempt_dropped_do_no_harm(run: Path) -> None:
    write_sent(run, Sent({1: 500, 2: 3, 3: 7}, 9))
    assert steps(run, read_sent(run)) == []
    assert count(run) == Counts(103, 103)


@pytest.mark.parametrize("text", ["", "[]", '{"lines": {"x": 1}, "texts": 0}', "[" * 100_000])
def test_damaged_marks_are_no_marks(run: Path, text: str) -> None:
    (run / "wandb" / "sent.json").write_text(text)
    assert read_sent(run) == Sent()


def test_a_run_of_an_older_modlib(run: Path) -> None:
    """It had no marks but one, that the last process came to its end; else the last minute is sent again."""
    folder = run / "wandb" / "offline-run-20260101_000000-x"
    folder.mkdir()
    (folder / "run-x.wandb").touch()
    assert [step for kind, step in steps(run, read_sent(run)) if kind == "metrics"] == list(range(43, 104))
    (run / "wandb" / "all_written").touch()
    assert steps(run, read_sent(run)) == []


def test_a_run_without_metrics(tmp_path: Path) -> None:
    assert steps(tmp_path, read_sent(tmp_path)) == []
    assert count(tmp_path) == Counts(0, 0)
    write_sent(tmp_path, Sent({1: 1}))  # there is no folder for it: nothing is marked, and nothing fails
    assert not (tmp_path / "wandb").exists()
