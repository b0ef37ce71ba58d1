"""SLURM's answers: what squeue and sacct of SLURM 22.05 print, and what is left when nobody answers."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest

from modlib.launching import scheduler
from modlib.launching.scheduler import JobState, parse_sacct, parse_squeue, parse_time_left, reason_in_words

SQUEUE = """\
1|CANCELLED|None|node[1-2]|2026-11-25T17:48:25|2026-11-25T17:48:29|1:56|0|main|/tmp/exp|/tmp/exp/job.sh|job.sh|
2|CANCELLED|BeginTime||2026-11-25T17:48:48|2026-11-25T17:48:48|2:00|1|main|/tmp/exp|/tmp/exp/job.sh|job.sh|
8|FAILED|NonZeroExitCode|node1|2026-11-25T17:51:06|2026-11-25T17:51:06|1:00:00|0|main|/tmp|(null)|st-fail|
5|PENDING|BeginTime||2026-11-25T17:51:30|2026-11-25T18:51:30|1:00:00|1|main|/tmp|(null)|st-sleep|
6_1|PENDING|JobArrayTaskLimit||N/A|N/A|1:00:00|0|main|/tmp|(null)|st-array|
7|PENDING|JobHeldUser||N/A|N/A|1:00:00|0|main|/tmp|(null)|st-dep|
6_0|RUNNING|None|node1|2026-11-25T17:51:06|2026-11-25T18:51:06|59:40|0|main|/tmp|(null)|st-array|
10|RUNNING|None|node1|2026-11-25T17:51:24|2026-11-25T18:51:24|59:58|0|main|/tmp|(null)|a-name-of-more-than-20-characters-x|y|
"""
SACCT = """\
1|CANCELLED by 0|None|node[1-2]|2026-11-25T17:48:25|2026-11-25T17:48:29
2|PREEMPTED|None|node[1-2]|2026-11-25T17:48:35|2026-11-25T17:48:39
2|CANCELLED by 0|BeginTime|None assigned|None|2026-11-25T17:48:48
5|REQUEUED|None|node1|2026-11-25T17:51:06|2026-11-25T17:51:24
7|PENDING|JobHeldUser|None assigned|Unknown|Unknown
8|FAILED|None|node1|2026-11-25T17:51:06|2026-11-25T17:51:06
6_0|RUNNING|None|node1|2026-11-25T17:51:06|Unknown
6_[1-3%1]|PENDING|JobArrayTaskLimit|None assigned|Unknown|Unknown
"""


def test_squeue() -> None:
    jobs = {job.job_id: job for job in parse_squeue(SQUEUE)}
    assert list(jobs) == ["1", "2", "8", "5", "6_1", "7", "6_0", "10"]
    requeued, running, cancelled = jobs["5"], jobs["6_0"], jobs["1"]
    assert (requeued.state, requeued.reason, requeued.nodes, requeued.restarts) == ("PENDING", "BeginTime", "", 1)
    assert (requeued.start, requeued.time_left_s) == ("2026-11-25T17:51:30", 3600)
    assert requeued.pending
    assert requeued.active
    assert (running.nodes, running.time_left_s, running.reason) == ("node1", 59 * 60 + 40, "")
    assert running.active
    assert not running.pending
    assert (cancelled.nodes, cancelled.end, cancelled.time_left_s) == ("node[1-2]", "2026-11-25T17:48:29", None)
    assert not cancelled.active
    assert jobs["6_1"].start == ""
    assert jobs["6_1"].name == "st-array"
    assert jobs["10"].name == "a-name-of-more-than-20-characters-x|y"


def test_lines_of_another_form_are_left_out() -> None:
    assert parse_squeue("CLUSTER: main\n\n12|RUNNING\nslurm_load_jobs error\n") == []
    assert parse_sacct("sacct: error\n\n12|RUNNING\n") == {}


def test_squeue_finds_the_run_that_a_script_lies_in(tmp_path: Path) -> None:
    script = tmp_path / "runs" / "one" / "attempts" / "0001" / "job.sh"
    script.parent.mkdir(parents=True)
    (tmp_path / "runs" / "one" / "run.json").write_text("{}")
    head = "12|RUNNING|None|node1|2026-11-25T17:51:24|2026-11-25T18:51:24|59:58|0|main"
    (job,) = parse_squeue(f"{head}|/somewhere|{script}|one|\n")
    assert job.run_path == tmp_path / "runs" / "one"
    (job,) = parse_squeue(f"{head}|{tmp_path}/runs/one|(null)|one|\n")
    assert job.run_path == tmp_path / "runs" / "one"
    (job,) = parse_squeue(f"{head}|{tmp_path}|(null)|one|\n")
    assert job.run_path is None


def test_sacct_gives_the_newest_life_and_counts_the_earlier_ones() -> None:
    jobs = parse_sacct(SACCT)
    assert list(jobs) == ["1", "2", "5", "7", "8", "6_0"]
    assert jobs["1"] == JobState(
        "1", "CANCELLED", "by user 0", "node[1-2]", "2026-11-25T17:48:25", "2026-11-25T17:48:29"
    )
    assert (jobs["2"].state, jobs["2"].restarts, jobs["2"].nodes, jobs["2"].start) == ("CANCELLED", 1, "", "")
    assert (jobs["5"].state, jobs["5"].pending) == ("REQUEUED", True)
    assert jobs["6_0"].end == ""


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("59:40", 3580), ("1:00:00", 3600), ("2-01:02:03", 176523), ("0:05", 5), ("UNLIMITED", None), ("INVALID", None)],
)
def test_time_left(text: str, seconds: int | None) -> None:
    assert parse_time_left(text) == seconds


def test_reasons_in_words() -> None:
    assert reason_in_words("Priority") == "jobs of higher priority come first (Priority)"
    unavailable = "ReqNodeNotAvail, UnavailableNodes:node[1-4]"
    assert reason_in_words(unavailable) == f"a node that it needs is down, drained or reserved ({unavailable})"
    assert reason_in_words("QOSMaxGRESPerUser").startswith("a limit of its account, user or QOS is reached (QOSMax")
    assert reason_in_words("SomethingNew") == "SomethingNew"


def test_without_slurm_there_are_no_answers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not scheduler.available()
    assert scheduler.job_states(["12"]) == {}
    assert scheduler.my_jobs() is None
    assert scheduler.cancel(["12"]) == "scancel is not installed here or does not answer"
    assert scheduler.signal("12", "TERM") == "scancel is not installed here or does not answer"


@pytest.mark.slurm
def test_jobs_of_a_cluster(tmp_path: Path) -> None:
    script = ["sbatch", "--parsable", "--ntasks=1", f"--output={tmp_path}/out", "--job-name=modlib-scheduler-test"]
    submitted = subprocess.run([*script, "--wrap=sleep 300"], capture_output=True, text=True, check=True)
    job = submitted.stdout.strip()
    held = subprocess.run([*script, "--hold", "--wrap=sleep 1"], capture_output=True, text=True, check=True)
    waiting = held.stdout.strip()
    try:
        assert wait_for_state(job, "RUNNING").nodes
        found = scheduler.job_states([job, waiting, "999999999", "not a number"])
        assert (found[waiting].state, found[waiting].reason) == ("PENDING", "JobHeldUser")
        assert found["999999999"].state == scheduler.UNKNOWN
        assert list(found) == [job, waiting, "999999999"]
        mine = {one.job_id: one.name for one in scheduler.my_jobs() or []}
        assert mine[job] == mine[waiting] == "modlib-scheduler-test"
        assert scheduler.cancel([job, waiting]) == ""
        assert not wait_for_state(job, "CANCELLED").active
    finally:
        subprocess.run(["scancel", job, waiting], capture_output=True, check=False)


@pytest.mark.slurm
def test_what_users_set_for_squeue_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SQUEUE_FORMAT", "%i")
    monkeypatch.setenv("SQUEUE_STATES", "FAILED")
    monkeypatch.setenv("SLURM_TIME_FORMAT", "relative")
    assert scheduler.my_jobs() is not None
    assert os.environ["SQUEUE_FORMAT"] == "%i"


def wait_for_state(job: str, state: str, timeout_s: float = 60) -> JobState:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        found = scheduler.job_states([job]).get(job)
        if found is not None and found.state == state:
            return found
        time.sleep(0.2)
    raise AssertionError(f"job {job} was not {state} within {timeout_s} s: {found}")
