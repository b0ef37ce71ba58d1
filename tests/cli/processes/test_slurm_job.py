"""A script without submitit first calls `python -m modlib.cli.processes.slurm_job prepare RUN`, the config on stdin."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from modlib.config import load
from modlib.launching.identity import with_planned_batch
from tests import forked


def prepare(run: Path, *params: str, job: str) -> subprocess.CompletedProcess[str]:
    return forked.run(
        [sys.executable, "-m", "modlib.cli.processes.slurm_job", "prepare", str(run)],
        input=load(["debug/tiny.gin"], params).text,
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "SLURM_JOB_ID": job},
    )


def record(run: Path) -> dict[str, Any]:
    return json.loads((run / "run.json").read_text())


def test_the_first_job_makes_the_run_folder_and_is_known_there(tmp_path: Path) -> None:
    run = tmp_path / "run"
    done = prepare(run, "SEED=3", job="17")
    assert done.returncode == 0, done.stderr
    alone = load(["debug/tiny.gin"], ["SEED=3"])
    assert load([run / "config.gin"]).hash == with_planned_batch(alone, 1).hash
    assert record(run)["executor"] == "slurm"
    assert record(run)["slurm"] == {"job_ids": ["17"], "attempts_before": 0}
    origins = json.loads((run / "provenance.json").read_text())["parameters"]["train.num_steps"]["origins"]
    assert origins[0].rpartition(":")[0] == str(run / "script.gin")
    assert (run / "script.gin").is_file(), "the file that provenance names stays"


@pytest.mark.slow
def test_a_job_that_is_queued_again_is_not_a_new_submission_and_another_job_is(tmp_path: Path) -> None:
    run = tmp_path / "run"
    for _ in range(2):
        assert prepare(run, job="17").returncode == 0
        (run / "attempts" / "0001").mkdir(exist_ok=True)
    assert record(run)["slurm"] == {"job_ids": ["17"], "attempts_before": 0}
    assert prepare(run, job="18").returncode == 0
    assert record(run)["slurm"]["job_ids"] == ["17", "18"]
    assert record(run)["slurm"]["attempts_before"] == 1


def test_a_script_with_another_config_is_refused(tmp_path: Path) -> None:
    run = tmp_path / "run"
    prepare(run, job="17")
    before = (run / "config.gin").read_bytes()
    done = prepare(run, "LR=2e-3", job="18")
    assert done.returncode == 2
    assert "run 'run' exists with a different config" in done.stderr
    assert (run / "config.gin").read_bytes() == before
    assert record(run)["slurm"]["job_ids"] == ["17"]
