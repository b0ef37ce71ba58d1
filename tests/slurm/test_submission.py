"""What is submitted is what runs; what is wrong is not submitted; and submissions do not meet each other."""

from __future__ import annotations

import os
import subprocess
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.launching_command import ROOT, metrics
from tests.slurm.cluster import Submitted, ask, launch_slurm, submit, wait_for

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(600)]
TINY = "debug/tiny.gin"
PACED = str(Path(__file__).parent / "paced.gin")


def test_code_edited_between_submission_and_start_is_not_what_runs(tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
    done = launch_slurm(
        TINY,
        ["NUM_STEPS=3", "Slurm.extra={'hold': True}"],
        runs_dir=tmp_path / "runs",
        name="run",
        cwd=clone,
        root=clone,
    )
    assert done.returncode == 0, done.stderr
    run = Submitted(tmp_path / "runs" / "run")
    for name in ("train.py", "step.py"):
        (clone / "modlib" / "training" / name).write_text("raise SystemExit('edited after the submission')\n")
    ask("scontrol", "release", run.job_id)
    assert run.wait_until_over() == "COMPLETED", run.log()
    assert metrics(run.path)[-1]["step"] == 3


def test_a_snapshot_that_was_tampered_with_is_refused(tmp_path: Path) -> None:
    run = submit(TINY, ["NUM_STEPS=3", "Slurm.extra={'hold': True}"], runs_dir=tmp_path, name="run")
    (victim,) = run.path.glob("code/*/project/modlib/training/step.py")
    victim.chmod(0o644)
    victim.write_text(victim.read_text() + "\n# changed\n")
    ask("scontrol", "release", run.job_id)
    assert run.wait_until_over() == "FAILED"
    assert "project/modlib/training/step.py" in run.log()
    assert run.attempts == 0
    assert "ExitCode=4:0" in ask("scontrol", "--oneliner", "show", "job", run.job_id)


def test_a_broken_config_queues_nothing(tmp_path: Path) -> None:
    done = launch_slurm(TINY, ["NUM_STEPS='three'", "Slurm.time='soon'"], runs_dir=tmp_path / "runs", name="run")
    assert done.returncode == 2
    assert "NUM_STEPS" in done.stderr
    assert not (tmp_path / "runs").exists()
    assert ask("squeue", "-h").strip() == ""


def test_what_slurm_refuses_is_said_in_its_words_and_leaves_the_run_as_it_was(tmp_path: Path) -> None:
    done = launch_slurm(TINY, ["Slurm.partition='nowhere'"], runs_dir=tmp_path, name="run")
    assert done.returncode == 1
    assert "SLURM must take the job, but" in done.stderr
    assert "invalid partition specified: nowhere" in done.stderr
    assert Submitted(tmp_path / "run").state["status"] == "created"
    dry = launch_slurm(TINY, ["Slurm.nodes=99"], "--dry_run", runs_dir=tmp_path, name="other")
    assert dry.returncode == 1
    assert "SLURM would refuse the job" in dry.stderr
    assert not (tmp_path / "other").exists()


def test_a_dry_run_shows_the_very_script_and_when_it_would_start(tmp_path: Path) -> None:
    dry = launch_slurm(TINY, ["NUM_STEPS=2"], "--dry_run", runs_dir=tmp_path, name="run")
    assert dry.returncode == 0, dry.stderr
    assert "to start at" in dry.stdout
    assert not (tmp_path / "run").exists()
    run = submit(TINY, ["NUM_STEPS=2", "Slurm.extra={'hold': True}"], runs_dir=tmp_path, name="run")
    script = (run.path / "submitit" / f"{run.job_id}_submission.sh").read_text()
    code = next(run.path.glob("code/*"))
    shown = dry.stdout.replace("code/SNAPSHOT", f"code/{code.name}")
    for line in script.splitlines():
        assert line == "#SBATCH --hold" or line in shown, line


def test_a_second_job_for_a_run_is_refused(tmp_path: Path) -> None:
    run = submit(TINY, ["Slurm.extra={'hold': True}"], runs_dir=tmp_path, name="run")
    again = launch_slurm(TINY, ["Slurm.extra={'hold': True}"], runs_dir=tmp_path, name="run")
    assert again.returncode == 4
    assert f"run run must have one job at a time, but job {run.job_id} is pending" in again.stderr


def test_ten_submissions_at_once_are_ten_runs(tmp_path: Path) -> None:
    params = ["NUM_STEPS=2", "Slurm.nodes=1", "Slurm.mem_gb=1", "LOG_EVERY=1", "train.sample=None"]

    def submitted(number: int) -> Submitted:
        return submit(TINY, [*params, f"SEED={number}"], runs_dir=tmp_path, name=f"run{number}")

    with ThreadPoolExecutor(10) as pool:
        runs = list(pool.map(submitted, range(10)))
    assert len({run.job_id for run in runs}) == 10
    for run in runs:
        assert run.wait_until_over(timeout_s=400) == "COMPLETED", run.log()
    places = [(run.state["host"], run.state["job"]["rendezvous"]) for run in runs]
    assert len(set(places)) == 10
    assert len({rendezvous.rpartition(":")[2] for _, rendezvous in places}) == 10, "every run has a port of its own"
    first_losses = [next(line["train/loss"] for line in metrics(run.path)) for run in runs]
    assert len(set(first_losses)) == 10, "each has its own seed, so its own folder"


def test_no_secret_is_written_anywhere(tmp_path: Path) -> None:
    canary = f"canary-{uuid.uuid4().hex}"
    secrets = {"WANDB_API_KEY": canary, "HF_TOKEN": canary[::-1], "MY_PASSWORD": canary, "WANDB_MODE": "offline"}
    fail = tmp_path / "fail"
    params = [f"PacedCrossEntropyLoss.fail_file='{fail}'", "PacedCrossEntropyLoss.seconds=0.2"]
    run = submit([PACED, "tracking/wandb.gin"], params, runs_dir=tmp_path, name="run", env=secrets)
    run.wait_for_step(2)
    shown = [ask("scontrol", "show", "job", run.job_id), ask("sacct", "-j", run.job_id, "--parsable2", "-o", "ALL")]
    shown += [
        path.read_bytes().decode(errors="replace") for path in Path("/proc").glob("[0-9]*/cmdline") if readable(path)
    ]
    fail.write_text("1")
    assert run.wait_until_over() == "FAILED"
    files = [path for path in run.path.rglob("*") if path.is_file() and "/code/" not in str(path)]
    assert any(path.suffix == ".pkl" for path in files)
    assert any(path.suffix == ".wandb" for path in files)
    for secret in (canary, canary[::-1]):
        assert not [text for text in shown if secret in text]
        assert not [path for path in files if secret.encode() in path.read_bytes()]


def readable(path: Path) -> bool:
    try:
        path.read_bytes()
    except OSError:
        return False
    return True


def test_status_queue_and_cancel_know_the_job(tmp_path: Path) -> None:
    run = submit(PACED, ["PacedCrossEntropyLoss.seconds=0.3"], runs_dir=tmp_path, name="run")
    run.wait_for_step(2)

    def modlib(*words: str) -> str:
        done = subprocess.run(
            ["modlib", *words, "--runs_dir", str(tmp_path)],
            capture_output=True,
            text=True,
            timeout=60,
            env=dict(os.environ),
        )
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    assert "running" in modlib("status", "run")
    assert run.job_id in modlib("status", "run")
    assert "run" in modlib("queue")
    assert "node[1-2]" in modlib("ls")
    assert "train step=2/40" in modlib("logs", "run", "--lines", "200")
    modlib("cancel", "run")
    assert run.wait_until_over() == "CANCELLED"
    wait_for("the record", lambda: run.state["status"] == "cancelled", 30, run.log)
    assert "cancelled" in modlib("status", "run")
    resumed = modlib("resume", "run")
    assert "is queued for run run" in resumed
    run.wait_for_step(run.state["step"] + 1)
