"""The end of a metrics.jsonl: pace, losses, torn lines, long files."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from modlib.launching.recent_metrics import TAIL_BYTES, RecentMetrics, recent_metrics
from modlib.tracking.jsonl import read_last_lines, read_lines


def written(folder: Path, *lines: dict[str, object], torn: str = "") -> Path:
    path = folder / "metrics.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + torn)
    return path


def line(step: int, time: float, attempt: int = 1, **more: object) -> dict[str, object]:
    return {"step": step, "tokens": 100 * step, "time": time, "attempt": attempt, **more}


def test_pace_and_losses(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        line(10, 1000.0, **{"train/loss": 9.0}),
        line(10, 1001.0, **{"val/code/loss": 8.5, "val/code/perplexity": 4000.0}),
        line(20, 1020.0, **{"train/loss": 7.0}),
        line(30, 1040.0, **{"train/loss": 6.0}),
    )
    found = recent_metrics(path)
    assert (found.step, found.tokens, found.time, found.attempt) == (30, 3000, 1040.0, 1)
    assert (found.loss, found.val_loss) == (6.0, 8.5)
    assert found.seconds_per_step == pytest.approx(2.0)
    assert found.seconds_per_line == pytest.approx(40 / 3)


def test_the_pace_is_that_of_the_last_attempt(tmp_path: Path) -> None:
    path = written(tmp_path, line(10, 0.0), line(20, 1.0), line(30, 5000.0, 2), line(40, 5030.0, 2))
    assert recent_metrics(path).seconds_per_step == pytest.approx(3.0)


def test_one_line_has_no_pace(tmp_path: Path) -> None:
    found = recent_metrics(written(tmp_path, line(10, 1000.0)))
    assert (found.step, found.seconds_per_step, found.seconds_per_line) == (10, None, None)


def test_a_torn_last_line_and_special_values(tmp_path: Path) -> None:
    path = written(tmp_path, line(10, 1.0, **{"train/loss": "NaN"}), torn='{"step": 20, "tok')
    found = recent_metrics(path)
    assert found.step == 10
    assert found.loss is not None
    assert math.isnan(found.loss)


@pytest.mark.parametrize("content", [None, b"", b"\n\n", b"\xff\xfe\x00", b"[1]\n", b'{"tokens": 3}\n', b'{"step"'])
def test_nothing_to_read_gives_nothing(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "metrics.jsonl"
    if content is not None:
        path.write_bytes(content)
    assert recent_metrics(path) == RecentMetrics()


def test_of_a_long_file_only_the_end_is_read(tmp_path: Path) -> None:
    lines = [line(step, float(step), **{"train/loss": 1.0, "train/lr": 1e-4}) for step in range(1, 5001)]
    path = written(tmp_path, lines[0] | {"val/validation/loss": 3.0}, *lines[1:4500], lines[4500] | {"val/a/loss": 2.0})
    with open(path, "a") as file:
        file.write("".join(json.dumps(one) + "\n" for one in lines[4501:]))
    assert len(json.dumps(lines[-1])) * 499 > TAIL_BYTES  # the evaluation is further back than the tail
    found = recent_metrics(path)
    assert (found.step, found.val_loss, found.seconds_per_step) == (5000, 2.0, 1.0)


@pytest.mark.parametrize("most_bytes", [1, 9, 10, 11, 20, 29, 30, 31, 1000])
def test_read_last_lines_gives_whole_lines_alone(tmp_path: Path, most_bytes: int) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"a": 10}\n{"a": 20}\n{"a": 30}\n')
    assert path.stat().st_size == 30
    expected = list(read_lines(path))[3 - min(3, most_bytes // 10) :]
    assert read_last_lines(path, most_bytes) == expected
    assert read_last_lines(path, most_bytes, b"20") == [one for one in expected if one["a"] == 20]


def test_lines_of_other_types_are_no_lines_and_values_of_other_types_no_values(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    lines = [
        b'{"step": 4, "tokens": 400, "time": 1.0, "attempt": 1, "train/loss": 7.0}',
        b'{"step": "5", "time": 2.0, "attempt": 1, "train/loss": 6.0}',
        b'{"step": Infinity, "time": 2.0, "attempt": 1, "train/loss": 6.0}',
        b'{"step": 1' + 400 * b"0" + b', "time": 2.0, "attempt": 1}',
        b"[" * 10_000,
        b'{"step": 8, "tokens": "many", "time": "late", "attempt": [1], "train/loss": {"a": 1}, "throughput/x": 0}',
    ]
    path.write_bytes(b"\n".join(lines) + b"\n")
    first, last = read_lines(path)
    assert (first["step"], first["train/loss"]) == (4, 7.0)
    assert last == {"step": 8, "throughput/x": 0}
    found = recent_metrics(path)
    assert (found.step, found.tokens, found.time, found.attempt, found.loss) == (8, None, None, None, 7.0)
