"""At resume metrics.jsonl is counted: gaps, doubled and damaged lines are said, and recorded in run.json."""

from __future__ import annotations

from pathlib import Path

import pytest

from modlib.runtime.run_folder import RunFolder
from modlib.tracking.jsonl import JSONL, read_lines
from modlib.tracking.messages import MetricsLogged, RunStarted
from modlib.tracking.metrics_gaps import intervals_until, missing_steps, ranges, text_of, with_interval


def start(run: RunFolder, step: int, every: int) -> JSONL:
    subscriber = JSONL(run_path=run.path)
    resolved = {"train.log_every": every}
    subscriber.receive(RunStarted(run.name, run.path, 1, step, 100, 100, resolved=resolved))
    return subscriber


def trained(run: RunFolder, first: int, last: int, every: int) -> None:
    """An attempt that logs the steps after `first` up to `last`, and evaluates at every tenth."""
    subscriber = start(run, first, every)
    for step in range(first + 1, last + 1):
        if step % every == 0:
            subscriber.receive(MetricsLogged(step, step, 0.5, 1, {"train/loss": 1 / step, "train/lr": 0.1}))
        if step % 10 == 0:
            subscriber.receive(MetricsLogged(step, step, 0.5, 1, {"val/a/loss": 2 / step}))
            subscriber.receive(MetricsLogged(step, step, 0.5, 1, {"val/b/loss": 3 / step}))
    subscriber.close()


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    folder = RunFolder(tmp_path / "run")
    folder.create()
    return folder


def edit(run: RunFolder, *drop: int, twice: tuple[int, ...] = (), damage: tuple[int, ...] = ()) -> None:
    """Change lines of the file by their numbers, from 0."""
    lines = run.metrics_path.read_bytes().splitlines(keepends=True)
    changed = []
    for number, line in enumerate(lines):
        if number in damage:
            line = line.replace(b"train/loss", b'train/"loss')
        changed += [] if number in drop else [line, line] if number in twice else [line]
    run.metrics_path.write_bytes(b"".join(changed))


def test_a_whole_file_is_as_it_was(run: RunFolder, caplog: pytest.LogCaptureFixture) -> None:
    trained(run, 0, 20, 5)
    before = run.metrics_path.read_bytes()
    start(run, 20, 5).close()
    assert run.metrics_path.read_bytes() == before
    assert caplog.messages == []
    assert run.read() == {"log_every": [[0, 5]]}


def test_missing_lines_are_said_and_recorded(run: RunFolder, caplog: pytest.LogCaptureFixture) -> None:
    trained(run, 0, 12, 1)
    edit(run, 2, 3, 4, 7)
    start(run, 12, 1).close()
    assert caplog.messages == [
        "metrics.jsonl has no line for steps 3 to 5, 8: the run continues, and its record has a gap, "
        "which run.json names"
    ]
    assert run.read()["metrics_missing"] == [[3, 5], [8, 8]]


def test_a_file_that_is_gone_or_cut_is_a_gap(run: RunFolder, caplog: pytest.LogCaptureFixture) -> None:
    trained(run, 0, 40, 20)
    whole = run.metrics_path.read_bytes()
    run.metrics_path.unlink()
    start(run, 40, 20).close()
    assert "no line for steps 20 to 40:" in caplog.text
    run.metrics_path.write_bytes(whole[: whole.index(b'"step": 40')])
    start(run, 40, 20).close()
    assert "no line for step 40:" in caplog.text
    run.metrics_path.write_bytes(whole)
    start(run, 40, 20).close()
    assert run.read()["metrics_missing"] == []  # somebody put the lines back


def test_doubled_and_damaged_lines_are_dropped(run: RunFolder, caplog: pytest.LogCaptureFixture) -> None:
    trained(run, 0, 12, 1)
    whole = list(read_lines(run.metrics_path))
    edit(run, twice=(0, 3, 10), damage=(5,))
    start(run, 12, 1).close()
    assert list(read_lines(run.metrics_path)) == [line for line in whole if line["step"] != 6]
    assert caplog.messages[0] == "metrics.jsonl: 1 damaged and 3 doubled lines are dropped"
    assert "no line for step 6:" in caplog.messages[1]
    state = run.read()
    assert state["metrics_dropped"] == {"damaged": 1, "doubled": 3, "at_step": 12}
    assert state["metrics_missing"] == [[6, 6]]


def test_of_two_lines_the_later_stays(run: RunFolder) -> None:
    trained(run, 0, 3, 1)
    text = run.metrics_path.read_text()
    run.metrics_path.write_text(text + text.splitlines()[1].replace("0.5, ", "7.5, ") + "\n")
    start(run, 3, 1).close()
    assert [(line["step"], line["time"]) for line in read_lines(run.metrics_path)] == [(1, 0.5), (3, 0.5), (2, 7.5)]


def test_another_interval_after_a_restart_is_no_gap(run: RunFolder, caplog: pytest.LogCaptureFixture) -> None:
    trained(run, 0, 25, 10)
    trained(run, 22, 30, 3)
    start(run, 30, 1).close()
    assert run.read()["log_every"] == [[0, 10], [22, 3], [30, 1]]
    assert caplog.messages == []
    edit(run, 3)  # of step 20; an evaluation of it stays
    start(run, 30, 1).close()
    assert "no line for step 20:" in caplog.text


def test_a_run_that_recorded_no_interval_is_told_by_its_lines(run: RunFolder, caplog: pytest.LogCaptureFixture) -> None:
    trained(run, 0, 30, 5)
    run.run_json_path.unlink()
    edit(run, 0)
    start(run, 30, 1).close()
    assert "no line for step 5:" in caplog.text
    assert run.read()["log_every"] == [[30, 1]]


def test_intervals_that_are_none_are_left_out() -> None:
    assert intervals_until([[0, 5], [10, 2], [40, 1], [3], "x", [1, "2"], [5, 0], [-1, 3]], 40) == [(0, 5), (10, 2)]
    assert intervals_until({"a": 1}, 40) == intervals_until(None, 40) == []
    assert with_interval([(0, 5)], 10, 5) == [(0, 5)]
    assert with_interval([(0, 5)], 10, 2) == [(0, 5), (10, 2)]


def test_steps_of_intervals() -> None:
    assert missing_steps(set(), 10, [(0, 5), (7, 2)], 1) == [5, 8, 10]
    assert missing_steps({5, 8}, 10, [(0, 5), (7, 2)], 1) == [10]
    assert missing_steps(set(), 6, [], 3) == [3, 6]
    assert missing_steps(set(), 0, [], 3) == []


def test_ranges_end_where_a_line_is() -> None:
    assert ranges([5, 10, 20, 40], [15, 45]) == [(5, 10), (20, 40)]
    assert text_of([(5, 5)]) == "step 5"
    assert text_of([(step, step) for step in range(7)]) == "steps 0, 1, 2, 3, 4 and 2 more gaps"
