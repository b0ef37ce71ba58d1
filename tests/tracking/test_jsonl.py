"""metrics.jsonl: complete, exact, and rewound on resume."""

from __future__ import annotations

import errno
import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from modlib.tracking.jsonl import JSONL, read_lines, rewind
from modlib.tracking.messages import CheckpointSaved, MetricsLogged, RunEnded, RunStarted, TextLogged


def metrics(step: int, **values: float) -> MetricsLogged:
    return MetricsLogged(step, step * 100, 1767225600.25 + step, 1, values or {"train/loss": 1 / step})


def started(path: Path, step: int) -> RunStarted:
    return RunStarted("run", path, 2, step, 100, 100)


def written(path: Path, *steps: int) -> JSONL:
    jsonl = JSONL(run_path=path)
    jsonl.receive(started(path, 0))
    for step in steps:
        jsonl.receive(metrics(step))
    return jsonl


def steps_in(path: Path) -> list[int]:
    return [record["step"] for record in read_lines(path / "metrics.jsonl")]


def test_lines_are_flat_in_order_and_exact(tmp_path: Path) -> None:
    jsonl = JSONL(run_path=tmp_path)
    jsonl.receive(MetricsLogged(3, 300, 1767225600.123456, 2, {"train/loss": 0.1 + 0.2, "train/lr": 3e-4}))
    line = (tmp_path / "metrics.jsonl").read_text()
    assert line == (
        '{"step": 3, "tokens": 300, "time": 1767225600.123456, "attempt": 2, '
        '"train/loss": 0.30000000000000004, "train/lr": 0.0003}\n'
    )
    assert json.loads(line)["train/loss"] == 0.1 + 0.2


def test_a_line_is_in_the_file_before_anything_is_closed(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from modlib.tracking.jsonl import JSONL\n"
        "from modlib.tracking.messages import MetricsLogged\n"
        "JSONL(run_path=Path(sys.argv[1])).receive(MetricsLogged(1, 2, 3.0, 1, {'a': 0.5})); os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)], timeout=60).returncode == -9
    assert json.loads((tmp_path / "metrics.jsonl").read_text())["a"] == 0.5


def test_not_finite_numbers_are_valid_json(tmp_path: Path) -> None:
    jsonl = JSONL(run_path=tmp_path)
    jsonl.receive(metrics(1, a=math.nan, b=math.inf, c=-math.inf))

    def refuse(constant: str) -> float:
        raise AssertionError(f"{constant} is not JSON")

    record = json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=refuse)
    assert (record["a"], record["b"], record["c"]) == ("NaN", "Infinity", "-Infinity")
    (read,) = read_lines(tmp_path / "metrics.jsonl")
    assert math.isnan(read["a"])
    assert (read["b"], read["c"]) == (math.inf, -math.inf)


def test_metrics_named_like_the_fixed_fields_do_not_replace_them(tmp_path: Path) -> None:
    JSONL(run_path=tmp_path).receive(MetricsLogged(7, 700, 1.0, 1, {"step": 1.0, "loss": 2.0}))
    (record,) = read_lines(tmp_path / "metrics.jsonl")
    assert (record["step"], record["loss"]) == (7, 2.0)


def test_samples_have_a_file_of_their_own(tmp_path: Path) -> None:
    jsonl = written(tmp_path, 1, 2)
    jsonl.receive(TextLogged(1, "sample", "a\n“b” NaN"))
    jsonl.receive(TextLogged(2, "sample", "NaN"))
    jsonl.receive(started(tmp_path, 1))
    jsonl.close()
    assert list(read_lines(tmp_path / "samples.jsonl")) == [{"step": 1, "tag": "sample", "text": "a\n“b” NaN"}]
    assert steps_in(tmp_path) == [1]


def test_going_on_from_a_step_drops_what_is_beyond_and_appends(tmp_path: Path) -> None:
    written(tmp_path, 1, 2, 3, 4, 5).close()
    jsonl = JSONL(run_path=tmp_path)
    jsonl.receive(started(tmp_path, 3))
    assert steps_in(tmp_path) == [1, 2, 3]
    jsonl.receive(metrics(4))
    jsonl.close()
    assert steps_in(tmp_path) == [1, 2, 3, 4]


def test_starting_from_scratch_empties_the_file(tmp_path: Path) -> None:
    written(tmp_path, 0 + 1, 2).close()
    JSONL(run_path=tmp_path).receive(started(tmp_path, 0))
    assert steps_in(tmp_path) == []


@pytest.mark.parametrize("torn", ['{"step": 3, "tokens": 3', "{", '{"step": 3', "\x00\x00\x00"])
def test_a_torn_last_line_is_dropped(tmp_path: Path, torn: str) -> None:
    written(tmp_path, 1, 2).close()
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write(torn)
    jsonl = JSONL(run_path=tmp_path)
    jsonl.receive(started(tmp_path, 50))
    jsonl.receive(metrics(3))
    jsonl.close()
    assert [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [1, 2, 3]


def test_a_whole_last_line_without_its_newline_is_kept(tmp_path: Path) -> None:
    written(tmp_path, 1, 2).close()
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:-1])
    rewind(path, 10)
    assert path.read_bytes().endswith(b"}\n")
    assert steps_in(tmp_path) == [1, 2]


def test_lines_to_keep_behind_lines_to_drop_are_kept(tmp_path: Path) -> None:
    written(tmp_path, 1, 2, 5, 3, 6, 4).close()
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(path.read_bytes() + b'{"other": 1}\n[1]\n{"tokens": 3, "step": 3}\n{"step": 33, "step": 2}\n')
    rewind(path, 4)
    assert steps_in(tmp_path) == [1, 2, 3, 4, 3, 2]
    assert list(tmp_path.iterdir()) == [path]


def test_rewinding_is_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path, 1, 5, 2).close()
    before = (tmp_path / "metrics.jsonl").read_bytes()

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        rewind(tmp_path / "metrics.jsonl", 3)
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


@pytest.mark.slow
def test_a_million_lines_are_rewound_quickly(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    rest = '"tokens": 4096, "time": 1767225600.5, "attempt": 1, "train/loss": 3.25}\n'
    path.write_text("".join(f'{{"step": {step}, {rest}' for step in range(1, 1_000_001)))
    start = time.process_time()
    rewind(path, 999_990)
    assert time.process_time() - start < 15
    with open(path, "rb") as file:
        file.seek(-200, os.SEEK_END)
        assert json.loads(file.read().splitlines()[-1])["step"] == 999_990


def test_lines_wait_while_the_disk_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jsonl = written(tmp_path, 1)
    write, full = os.write, True

    def write_or_full(descriptor: int, data: bytes) -> int:
        if full:
            write(descriptor, data[:10])  # the disk takes a part of the line
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(descriptor, data)

    monkeypatch.setattr(os, "write", write_or_full)
    for step in (2, 3):
        with pytest.raises(OSError, match="No space left"):
            jsonl.receive(metrics(step))
    assert steps_in(tmp_path) == [1]
    assert (tmp_path / "metrics.jsonl").read_text().count("\n") == 1
    full = False
    jsonl.receive(metrics(4))
    jsonl.close()
    assert [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [1, 2, 3, 4]


def test_a_short_write_is_told_and_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jsonl = written(tmp_path, 1)
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, data[:5]))
    with pytest.raises(OSError, match=r"only 5 of \d+ bytes could be written to .*metrics.jsonl"):
        jsonl.receive(metrics(2))
    monkeypatch.setattr(os, "write", write)
    jsonl.close()
    assert steps_in(tmp_path) == [1, 2]


def test_checkpoints_and_the_end_force_the_file_to_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    jsonl = written(tmp_path, 1)
    assert synced == []
    jsonl.receive(CheckpointSaved(1, tmp_path, 0.1, 10))
    assert len(synced) == 1
    jsonl.receive(RunEnded("finished", 1))
    assert len(synced) == 2
    jsonl.close()
