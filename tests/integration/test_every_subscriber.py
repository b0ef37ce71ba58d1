"""All subscribers at once, added one file after the other: each leaves what it is for."""

from __future__ import annotations

import csv
import json
from pathlib import Path

from tests.launching_command import launch


def test_two_steps_with_every_subscriber(tmp_path: Path) -> None:
    files = ("tracking/csv.gin", "tracking/rich_results.gin", "tracking/wandb.gin")
    flags = [word for file in files for word in ("--gin_file", file)]
    parameters = ["NUM_STEPS=2", "train.subscribers+=[@DummyProgress]"]
    result = launch("debug/tiny.gin", parameters, *flags, "--runs_dir", str(tmp_path), "--name", "all")
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
