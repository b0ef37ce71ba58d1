"""All subscribers at once, added file by file: each leaves what it is for. And none at all, and two of a kind."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from modlib.components import known_components
from modlib.config import load
from tests.launching_command import launch, metrics

FILES = ("tracking/csv.gin", "tracking/rich_results.gin", "tracking/wandb.gin")
DUMMY = "train.subscribers+=[@DummyProgress]"


def test_the_run_has_every_subscriber_of_the_catalogue() -> None:
    kinds = ("progress_subscriber", "results_subscriber")
    everything = {f"@{name}" for name, entry in known_components().items() if entry.type in kinds}
    assert set(map(str, load(["debug/tiny.gin", *FILES], [DUMMY]).resolved["train.subscribers"])) == everything


@pytest.mark.slow
def test_two_steps_with_every_subscriber(tmp_path: Path) -> None:
    flags = [word for file in FILES for word in ("--gin_file", file)]
    result = launch("debug/tiny.gin", ["NUM_STEPS=2", DUMMY], *flags, "--runs_dir", str(tmp_path), "--name", "all")
    assert result.returncode == 0, result.stderr
    run = tmp_path / "all"
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "train/loss" in line] == [1, 2]
    with open(run / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["train/loss"]) for row in rows if row["train/loss"]] == [
        line["train/loss"] for line in lines if "train/loss" in line
    ]
    assert list((run / "tb").glob("*tfevents*"))
    assert list((run / "wandb").glob("**/*.wandb"))
    assert "train step=2/2" in result.stderr  # rich progress, as plain lines
    assert "bits_per_byte" in result.stderr


@pytest.mark.slow
@pytest.mark.parametrize("subscribers", ["[]", "[@DummyProgress, @RichProgress, @RichResults, @RichResults]"])
def test_without_files_and_with_two_of_a_kind(tmp_path: Path, subscribers: str) -> None:
    parameters = ["NUM_STEPS=2", f"train.subscribers={subscribers}"]
    result = launch("debug/tiny.gin", parameters, "--runs_dir", str(tmp_path), "--name", "run")
    assert result.returncode == 0, result.stderr
    assert metrics(tmp_path / "run") == []
    assert not (tmp_path / "run" / "tb").exists()
    assert "metrics.jsonl" not in result.stderr.partition("sample")[2]  # the summary names what is there
    assert "tensorboard" not in result.stderr
    assert (tmp_path / "run" / "checkpoints" / "step-00000002").is_dir()


def test_two_that_would_write_the_same_files_are_refused(tmp_path: Path) -> None:
    parameters = ["NUM_STEPS=2", "train.subscribers=[@JSONL, @a/CSV, @b/CSV]"]
    result = launch("debug/tiny.gin", parameters, "--runs_dir", str(tmp_path), "--name", "run")
    assert result.returncode == 2
    assert "subscribers (CSV, 2 times) must name CSV once, since it writes files of the run folder" in " ".join(
        result.stderr.split()
    )
    assert not (tmp_path / "run").exists()
