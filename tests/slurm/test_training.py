"""A run on two nodes with two ranks each is the run of four processes on one machine."""

from __future__ import annotations

import json
import os
import re
import stat
from pathlib import Path

import pytest

from tests.launching_command import launch, numbers
from tests.slurm.cluster import Submitted, ask, launch_slurm, submit

pytestmark = pytest.mark.slurm
SHORT = ["NUM_STEPS=5", "LOG_EVERY=1", "EVAL_EVERY=5", "validation/Evaluator.num_sequences=8", "train.sample=None"]
LOCAL_FOUR = ["Local.num_processes=4", "Local.threads_per_process=1", "launch.executor='local'"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Submitted:
    """The quickstart's model, five steps on the cluster, with W&B."""
    runs = tmp_path_factory.mktemp("runs")
    run = submit(["quickstart.gin", "tracking/wandb.gin"], SHORT, runs_dir=runs, name="two-nodes")
    run.wait_for_status("finished", "failed")
    assert run.wait_until_over() == "COMPLETED", run.log()
    return run


def test_the_losses_equal_four_local_processes_bit_for_bit(finished: Submitted, tmp_path: Path) -> None:
    done = launch("quickstart.gin", [*SHORT, *LOCAL_FOUR], "--runs_dir", str(tmp_path), "--name", "here")
    assert done.returncode == 0, done.stderr
    assert numbers(finished.path) == numbers(tmp_path / "here")
    assert len(numbers(finished.path)) == 5 * 3 + 1
    here, there = (json.loads((path / "run.json").read_text()) for path in (tmp_path / "here", finished.path))
    assert here["config_hash"] == there["config_hash"], "the machine is not a part of the science"


def test_both_nodes_took_part_and_rank_0_alone_wrote_the_trackers(finished: Submitted) -> None:
    assert finished.state["job"]["hosts"] == ["node1", "node2"]
    assert finished.state["world_size"] == 4
    assert len(list((finished.path / "tb").glob("events.*"))) == 1
    assert len(list((finished.path / "wandb").glob("offline-run-*"))) == 1
    assert finished.state["status"] == "finished"
    assert json.loads((finished.path / "attempts" / "0001" / "exit.json").read_text())["reason"] == "finished"


def test_what_is_pickled_is_one_path(finished: Submitted) -> None:
    folder = finished.path / "submitit"
    payload = (folder / f"{finished.job_id}_submitted.pkl").read_bytes()
    assert len(payload) < 1000
    assert str(finished.path).encode() in payload
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_a_finished_run_that_is_queued_again_ends_at_once(finished: Submitted) -> None:
    before = (finished.path / "metrics.jsonl").read_bytes()
    ask("scontrol", "requeue", finished.job_id)
    assert finished.wait_until_over() == "COMPLETED"
    assert "is finished; there is nothing to do" in finished.log()
    assert (finished.path / "metrics.jsonl").read_bytes() == before
    assert finished.attempts == 1


def test_submitting_a_finished_run_queues_nothing(finished: Submitted) -> None:
    again = launch_slurm(
        ["quickstart.gin", "tracking/wandb.gin"], SHORT, runs_dir=finished.path.parent, name="two-nodes"
    )
    assert again.returncode == 0
    assert "is finished: 5 steps are done" in again.stderr
    assert ask("squeue", "-h").strip() == ""


def test_the_job_asks_for_what_the_profile_says_and_inherits_no_rank(tmp_path: Path) -> None:
    leaking = {"RANK": "7", "WORLD_SIZE": "8", "MASTER_PORT": "1", "SLURM_NTASKS": "99", "SLURM_JOB_ID": "1"}
    run = submit("debug/tiny.gin", ["NUM_STEPS=2"], runs_dir=tmp_path, name="clean", env=leaking)
    run.wait_for_status("finished", "failed")
    assert run.wait_until_over() == "COMPLETED", run.log()
    job = ask("scontrol", "--oneliner", "show", "job", run.job_id)
    assert re.search(r"NumTasks=4 .*CPUs/Task=1", job), job
    script = (run.path / "submitit" / f"{run.job_id}_submission.sh").read_text()
    assert "--cpus-per-task=1" in next(line for line in script.splitlines() if line.startswith("srun "))
    assert "--kill-on-bad-exit=1" in script
    assert os.environ.get("RANK") is None
