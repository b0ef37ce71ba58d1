"""`--write_script`: a job that sbatch takes by hand has the same life as one that was submitted."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.commands import modlib
from tests.launching_command import launch, metrics
from tests.slurm.cluster import Submitted, ask

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(600)]


class Plain(Submitted):
    """A run whose script was handed to sbatch; its log lies where it was written."""

    def log(self) -> str:
        logs = sorted(self.path.parents[1].glob("run-*.out"), key=lambda path: path.stat().st_mtime)
        return "\n".join(path.read_text(errors="replace") for path in logs)

    @property
    def steps(self) -> list[int]:
        return [line["step"] for line in metrics(self.path) if "train/loss" in line]


def sbatch(folder: Path, *params: str) -> tuple[Plain, str]:
    """Write the script, hand it to sbatch; the run and its job."""
    script, runs = folder / "job.sbatch", folder / "runs"
    where = ["--gin_file", "testcluster.gin", "--runs_dir", str(runs), "--name", "run"]
    done = launch("debug/tiny.gin", params, *where, "--dry_run", "--write_script", str(script), cwd=folder)
    assert done.returncode == 0, done.stderr
    assert f"submit it with: sbatch {script}" in done.stderr
    assert not runs.exists(), "writing the script makes nothing else"
    return Plain(runs / "run"), ask("sbatch", "--parsable", str(script)).strip()


def test_a_plain_job_is_queued_again_on_a_signal_and_trains_to_the_end(tmp_path: Path) -> None:
    run, job = sbatch(tmp_path, "NUM_STEPS=120")
    run.wait_for_step(5)
    assert run.job_ids == [job], "status, cancel and queue know it"
    assert f"job {job}" in modlib("status", run.path).stdout
    ask("scancel", "--signal=USR2", job)
    run.wait_for_status("queued")
    stopped_at = run.state["step"]
    assert 5 <= stopped_at < 120
    assert run.wait_until_over(job) == "COMPLETED", run.log()
    assert run.state["status"] == "finished"
    assert (run.attempts, run.job_ids) == (2, [job])
    assert run.steps == list(range(1, 121))
    assert f"job {job} is queued again; it continues from step {stopped_at}" in run.log()


def test_a_plain_job_that_may_not_be_queued_again_submits_its_successor(tmp_path: Path) -> None:
    run, job = sbatch(tmp_path, "NUM_STEPS=120", "Slurm.requeue=False")
    run.wait_for_step(5)
    ask("scancel", "--signal=USR2", job)
    run.wait_for_status("queued")
    assert run.wait_until_over(job) == "FAILED", "75: stopped and handed over"
    run.wait_for_status("finished", "failed", "cancelled")
    assert run.state["status"] == "finished", run.log()
    first, successor = run.job_ids
    assert first == job != successor
    assert run.wait_until_over(successor) == "COMPLETED"
    assert run.attempts == 2
    assert run.steps == list(range(1, 121))
    assert f"job {job} may not be queued again; its successor, job {successor}, continues from step" in run.log()
