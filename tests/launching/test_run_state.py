"""What a run is doing, from folders in every condition and what SLURM says of their jobs."""

from __future__ import annotations

import json
import math
import os
import shutil
import socket
import time
from pathlib import Path
from typing import Any

import pytest

from modlib.launching.run_state import NO_NEWS_S, RunState, failure, run_state
from modlib.launching.scheduler import UNKNOWN, JobState
from modlib.runtime.errors import DataError, Preempted
from modlib.runtime.logs import report_error, start_logging, stop_logging
from modlib.runtime.run_folder import RunFolder


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    folder = RunFolder(tmp_path / "runs" / "one")
    folder.create()
    folder.update(name="one", status="created")
    return folder


def submitted(run: RunFolder, *job_ids: str, **fields: Any) -> None:
    run.update(status="queued", executor="slurm", slurm={"job_ids": list(job_ids)}, **fields)


def jobs(*states: JobState) -> dict[str, JobState]:
    return {job.job_id: job for job in states}


def log(run: RunFolder, *steps: int, seconds_per_step: float = 2.0, attempt: int = 1, ago_s: float = 0.0) -> None:
    """Write lines as a run would that logged the last of these steps so long ago."""
    now = time.time() - ago_s
    with open(run.metrics_path, "a") as file:
        for step in steps:
            at = now - (steps[-1] - step) * seconds_per_step
            values = {"step": step, "tokens": 32 * step, "time": at, "attempt": attempt, "train/loss": 5.0}
            file.write(json.dumps(values) + "\n")


def elsewhere(run: RunFolder, age_s: float = 0.0) -> None:
    """A lease as a process on another host holds it, renewed so long ago."""
    path = run.path / "lease.json"
    path.write_text(json.dumps({"host": "node7", "pid": 4711, "started": 1.0, "since": 1.0}))
    os.utime(path, (time.time() - age_s,) * 2)


def test_created(run: RunFolder) -> None:
    found = run_state(run)
    assert (found.state, found.why, found.attempts, found.step) == ("created", "never started", 0, None)
    assert not found.is_over


def test_running_here(run: RunFolder) -> None:
    run.update(num_steps=100, world_size=2)
    with run.lock():
        run.begin_attempt()
        log(run, 10, 20, 30)
        found = run_state(run)
    assert (found.state, found.why, found.host, found.pid) == ("running", "", socket.gethostname(), os.getpid())
    assert (found.step, found.num_steps, found.tokens, found.loss, found.world_size) == (30, 100, 960, 5.0, 2)
    assert found.eta_s == pytest.approx(70 * 2.0, abs=3)
    assert found.heartbeat_age_s is not None
    assert found.heartbeat_age_s < 5
    assert found.quiet_s is not None
    assert found.quiet_s < 5
    assert not found.no_news
    assert abs(found.last_activity - time.time()) < 5


def test_no_news(run: RunFolder) -> None:
    with run.lock():
        run.begin_attempt()
        log(run, 10, 20, 30, ago_s=NO_NEWS_S + 130)
        found = run_state(run)
        assert (found.state, found.no_news, found.why) == ("running", True, "no news for 12m 10s")
        run.metrics_path.unlink()
        log(run, 10, 20, 30, ago_s=NO_NEWS_S + 130, seconds_per_step=60)  # a line in ten minutes is its habit
        assert not run_state(run).no_news


def test_the_lines_of_an_earlier_attempt_are_no_news_and_no_pace(run: RunFolder) -> None:
    run.begin_attempt().finish("stopped", 30, 75)
    log(run, 10, 20, 30, ago_s=10 * NO_NEWS_S)
    run.update(step=30, num_steps=100)
    with run.lock():
        run.begin_attempt()
        found = run_state(run)
    assert (found.state, found.step, found.attempts) == ("running", 30, 2)
    assert (found.eta_s, found.no_news) == (None, False)


def test_died_here(run: RunFolder) -> None:
    run.begin_attempt()
    (run.checkpoints_path / "step-00000008").mkdir()
    lease = {"host": socket.gethostname(), "pid": 2**22 + 1, "started": 1.0, "since": 1.0}
    (run.path / "lease.json").write_text(json.dumps(lease))
    found = run_state(run)
    assert found.state == "died"
    assert found.is_over
    assert found.why == f"process {os.getpid()} on {socket.gethostname()} is gone and left no word; step 8 is saved"
    assert found.checkpoint_step == 8


def test_elsewhere_the_lease_tells(run: RunFolder) -> None:
    run.begin_attempt()
    elsewhere(run, age_s=20)
    found = run_state(run)
    assert (found.state, found.host, found.pid) == ("running", "node7", 4711)
    elsewhere(run, age_s=600)
    assert run_state(run).state == "died"


def test_stopped_and_finished(run: RunFolder) -> None:
    run.begin_attempt().finish("stopped", 24, 75)
    log(run, 10, 20)
    (run.checkpoints_path / "step-00000024").mkdir()
    run.update(status="stopped", step=24, exit_code=75)
    found = run_state(run)
    assert (found.state, found.why) == ("stopped", "step 24 is saved; `modlib resume one` continues")
    assert (found.step, found.exit_code, found.eta_s, found.quiet_s) == (24, 75, None, None)
    run.update(status="finished", step=40, exit_code=0)
    assert (run_state(run).state, run_state(run).why, run_state(run).step) == ("finished", "", 40)


def test_failed_ranks_the_first_error_first(run: RunFolder) -> None:
    attempt = run.begin_attempt()
    host = socket.gethostname()
    try:
        report_error(Preempted("told to stop"), record_path=attempt.error_path(0), rank=0)
        report_error(DataError("tokens.bin (3) must be 4\nmore"), record_path=attempt.error_path(2), rank=2)
        report_error(ValueError("later"), record_path=attempt.error_path(1), rank=1)
    finally:
        stop_logging()
    run.update(status="failed", exit_code=3)
    assert run_state(run).why == f"data error: rank 2 on {host}: tokens.bin (3) must be 4"
    attempt.error_path(2).write_text("{torn")
    assert run_state(run).why == f"data error: rank 1 on {host}: ValueError: later"


@pytest.mark.parametrize(
    ("error", "text"),
    [(DataError("tokens.bin (3) must be 4"), "tokens.bin (3) must be 4"), (KeyError("lost"), "KeyError: 'lost'")],
)
def test_failed_in_one_process(run: RunFolder, error: Exception, text: str) -> None:
    attempt = run.begin_attempt()
    start_logging(log_file=attempt.log_path(0))
    try:
        raise error
    except Exception as raised:
        code = report_error(raised)
    finally:
        stop_logging()
    assert failure(attempt, code).endswith(f": {text}")


def test_failed_without_a_word(run: RunFolder) -> None:
    attempt = run.begin_attempt()
    assert failure(attempt, 137) == "killed by signal 9"
    assert failure(attempt, 5) == "non-finite loss or gradients"
    assert failure(attempt, None) == "left no word"
    assert failure(attempt, 99) == "exit code 99"


def test_queued(run: RunFolder) -> None:
    submitted(run, "12")
    waits = JobState("12", "PENDING", "Priority", start="2026-05-01T12:00:00")
    found = run_state(run, jobs(waits))
    assert (found.state, found.executor, found.job_ids, found.job) == ("queued", "slurm", ("12",), waits)
    assert found.why == ("job 12: jobs of higher priority come first (Priority), expected to start 2026-05-01 12:00:00")
    assert not found.is_over


def test_queued_and_slurm_knows_nothing(run: RunFolder) -> None:
    submitted(run, "11", "12")
    assert run_state(run, {}).why == "job 12 was submitted; SLURM does not answer here"
    gone = run_state(run, jobs(JobState("12", UNKNOWN)))
    assert (gone.state, gone.why) == ("queued", "job 12 was submitted, but squeue and sacct do not know it any more")


def test_a_job_that_ended_before_training(run: RunFolder) -> None:
    submitted(run, "12")
    found = run_state(run, jobs(JobState("12", "FAILED")))
    assert (found.state, found.why) == ("failed", "job 12 ended as FAILED before training began")
    found = run_state(run, jobs(JobState("12", "CANCELLED", "by user 7")))
    assert (found.state, found.why) == ("cancelled", "job 12 was cancelled by user 7 before it started")


def test_a_job_that_starts(run: RunFolder) -> None:
    submitted(run, "12")
    found = run_state(run, jobs(JobState("12", "RUNNING", nodes="node[1-2]")))
    assert (found.state, found.host) == ("running", "node[1-2]")
    assert found.why == "job 12 runs on node[1-2], but no process trains: it starts, or it ends"


def test_requeued_after_its_node_failed(run: RunFolder) -> None:
    submitted(run, "12")
    run.begin_attempt()
    elsewhere(run, age_s=600)
    found = run_state(run, jobs(JobState("12", "PENDING", "BeginTime", restarts=1)))
    assert (found.state, found.is_over) == ("queued", False)
    assert found.why.endswith("; its attempt 1 left no word")


def test_slurm_knows_sooner_than_the_lease_that_a_run_died(run: RunFolder) -> None:
    submitted(run, "12")
    run.begin_attempt()
    elsewhere(run, age_s=5)
    assert run_state(run, jobs(JobState("12", "RUNNING", nodes="node7"))).state == "running"
    assert run_state(run, jobs(JobState("12", UNKNOWN))).state == "running"
    found = run_state(run, jobs(JobState("12", "NODE_FAIL", nodes="node7")))
    assert (found.state, found.why) == ("died", "job 12 ended as NODE_FAIL; nothing was saved")
    found = run_state(run, jobs(JobState("12", "CANCELLED", "by user 7")))
    assert (found.state, found.why) == ("cancelled", "job 12 was cancelled by user 7")


def test_stopped_and_its_chain_waits(run: RunFolder) -> None:
    submitted(run, "12", "13", "14")
    run.begin_attempt().finish("stopped", 24, 75)
    run.update(status="stopped")
    ended, waits = JobState("12", "COMPLETED"), JobState("13", "PENDING", "Dependency")
    last = JobState("14", "PENDING", "Dependency")
    found = run_state(run, jobs(ended, waits, last))
    assert (found.state, found.job) == ("queued", waits)
    assert found.why == "job 13: waits for another job to end (Dependency); its attempt 1 ended as stopped"
    found = run_state(run, jobs(JobState("12", "COMPLETING", nodes="node1")))
    assert (found.state, found.is_over) == ("stopped", False)  # it may still queue itself again
    assert run_state(run, jobs(ended)).is_over


def test_a_run_that_was_last_started_here_has_no_jobs(run: RunFolder) -> None:
    submitted(run, "12")
    run.update(executor="local", status="stopped")
    found = run_state(run, jobs(JobState("12", "PENDING", "Priority")))
    assert (found.state, found.executor, found.job_ids) == ("stopped", "local", ())


def test_num_steps_from_the_configuration_of_the_run(run: RunFolder) -> None:
    run.provenance_path.write_text(json.dumps({"parameters": {"train.num_steps": {"value": "40"}}}))
    assert run_state(run).num_steps == 40
    run.provenance_path.write_text(json.dumps({"parameters": {"train.num_steps": {"value": "@steps()"}}}))
    assert run_state(run).num_steps is None
    run.update(num_steps=50)
    assert run_state(run).num_steps == 50


def test_ruins(run: RunFolder) -> None:
    run.run_json_path.write_text('{"name": "on')
    assert run_state(run).state == "created"
    assert run_state(run).why == "run.json must be JSON: unterminated string starting at (line 1, column 10)"
    (run.path / "lease.json").write_text(json.dumps({"host": socket.gethostname(), "pid": "x", "started": []}))
    run.metrics_path.write_bytes(b'\xff\x00{"step": 3')
    run.provenance_path.write_text("[]")
    run.attempts_path.joinpath("0001").mkdir()
    found = run_state(run)
    assert (found.state, found.attempts, found.num_steps, found.step) == ("died", 1, None, None)
    run.run_json_path.write_text(
        json.dumps({"status": 3, "slurm": [1], "step": "x", "host": None, "num_steps": "y", "exit_code": []})
    )
    assert (run_state(run).state, run_state(run).why) == (
        "died",
        "run.json must have a text or null at status, and has 3",
    )
    shutil.rmtree(run.path)
    assert run_state(run).state == "created"


def test_json_has_no_nan(run: RunFolder) -> None:
    submitted(run, "12", wandb_url="https://wandb.example/one")
    state = run_state(run, jobs(JobState("12", "RUNNING", nodes="node1", time_left_s=60)))
    assert json.loads(json.dumps(state.to_json(), allow_nan=False)) == state.to_json()
    plain = state.to_json()
    assert (plain["path"], plain["job_ids"], plain["job"]["nodes"]) == (str(run.path), ["12"], "node1")
    assert plain["wandb_url"] == "https://wandb.example/one"
    broken = RunState(name="a", path=run.path, state="failed", loss=math.nan, val_loss=math.inf).to_json()
    assert (broken["loss"], broken["val_loss"]) == ("NaN", "Infinity")
