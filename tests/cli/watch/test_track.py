"""`modlib track`: a tracker's record from the run folder alone."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from modlib.config import load
from modlib.runtime.run_folder import RunFolder
from modlib.tracking.jsonl import JSONL, read_lines
from modlib.tracking.messages import MetricsLogged, TextLogged
from modlib.tracking.wandb_sent import Sent, read_sent, write_sent
from tests.cli.commands import modlib
from tests.tracking.wandb_file import config, history, run_files, run_record


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    """A run of two attempts that is over, with the project of its W&B in its configuration; offline."""
    for name in list(os.environ):
        if name.startswith("WANDB_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("WANDB_MODE", "offline")
    run = RunFolder(tmp_path / "run")
    run.create()
    load(["debug/tiny.gin", "tracking/wandb.gin"], ["WandB.project='shapes'", "NUM_STEPS=6"]).to_run_folder(run.path)
    run.update(name="run", status="finished", step=6)
    for _ in range(2):
        run.begin_attempt()
    lines = JSONL(run_path=run.path)
    for step in range(1, 7):
        values = {"train/loss": 1 / step, "odd/nan": float("nan")} | ({"val/v/loss": 0.5} if step == 6 else {})
        lines.receive(MetricsLogged(step, 10 * step, 1767225600.0 + step, 1 if step < 4 else 2, values))
    lines.receive(TextLogged(6, "sample", "a text"))
    lines.close()
    run.update(status="finished", step=6)
    return run


def test_tensorboard_is_written_anew(run: RunFolder) -> None:
    run.tensorboard_path.mkdir()
    (run.tensorboard_path / "events.out.tfevents.0000000001.x.1.0").write_bytes(b"damaged")
    done = modlib("track", run.path, "--to", "tensorboard")
    assert done.output == f"{run.tensorboard_path} is written anew, from 6 lines of {run.metrics_path}\n"
    events = EventAccumulator(str(run.tensorboard_path), size_guidance={"scalars": 0})
    events.Reload()
    for name in ("train/loss", "val/v/loss", "odd/nan"):
        found = [(event.step, event.wall_time, repr(event.value)) for event in events.Scalars(name)]
        assert found == [
            (line["step"], line["time"], repr(float(np.float32(line[name]))))
            for line in read_lines(run.metrics_path)
            if name in line
        ]
    assert "sample/text_summary" in events.Tags()["tensors"]
    assert [path.name for path in run.path.glob(".tb*")] == []
    assert len(list(run.tensorboard_path.iterdir())) == 1


@pytest.mark.slow
def test_wandb_gets_what_it_has_not_and_that_is_marked(run: RunFolder) -> None:
    (run.path / "wandb").mkdir()
    write_sent(run.path, Sent({1: 2}))
    done = modlib("track", run.path, "--to", "wandb")
    (file,) = run_files(run.path)
    assert done.output.splitlines()[-2:] == [
        "W&B has all 6 rows of run; --again sends them once more",
        f"what is offline is uploaded with: wandb sync {file.parent}",
    ]
    rows = [row for row in history(file) if "tokens" in row]
    expected = [line for line in read_lines(run.metrics_path) if line["step"] > 2]
    assert [{name: repr(row[name]) for name in line} for row, line in zip(rows, expected, strict=True)] == [
        {name: repr(value) for name, value in line.items()} for line in expected
    ]
    assert len([row for row in history(file) if "sample/path" in row]) == 1
    assert (run_record(file).run_id, run_record(file).project) == ("run", "shapes")
    assert config(file)["train"]["num_steps"] == 6
    assert read_sent(run.path) == Sent({1: 3, 2: 3}, 1)

    again = modlib("track", run.path, "--to", "wandb")  # which starts nothing
    assert again.output == done.output[done.output.index("W&B has all") :]
    assert run_files(run.path) == [file]


def test_who_trains_the_run_is_left_alone(run: RunFolder) -> None:
    with run.lock():
        done = modlib("track", run.path, "--to", "tensorboard", code=4)
    assert "must have one trainer at a time" in done.output


def test_a_run_without_metrics_and_a_disabled_wandb_are_refused(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    done = modlib("track", run.path, "--to", "wandb", code=1)
    assert "W&B must be on for a run to be sent there, but WANDB_MODE is disabled; unset WANDB_MODE" in done.output
    run.metrics_path.unlink()
    done = modlib("track", run.path, "--to", "wandb", code=4)
    assert f"run ({run.path}) must have metrics in metrics.jsonl, and has none; train it first" in done.output
