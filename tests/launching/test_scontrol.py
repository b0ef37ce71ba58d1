"""Reading SLURM's words about a job. The samples are what SLURM 22.05 printed."""

from __future__ import annotations

import time

import pytest

from modlib.launching import scontrol

RUNNING = (
    "JobId=1 JobName=run JobState=RUNNING Reason=None Dependency=(null) Requeue=1 Restarts=0 BatchFlag=1 "
    "Reboot=0 ExitCode=0:0 RunTime=00:00:05 TimeLimit=00:02:00 TimeMin=N/A StartTime=2026-11-25T17:48:25 "
    "EndTime=2026-11-25T17:50:25 Deadline=N/A PreemptEligibleTime=2026-11-25T17:48:25 PreemptTime=None"
)


def test_a_running_job() -> None:
    facts = scontrol.parse_job(RUNNING)
    started = time.mktime(time.strptime("2026-11-25T17:48:25", "%Y-%m-%dT%H:%M:%S"))
    assert facts == scontrol.JobFacts(ending=False, restarts=0, preempted=False, end_time=started + 120)


@pytest.mark.parametrize(
    ("nodelist", "names"),
    [
        ("node1", ["node1"]),
        ("node[1-2]", ["node1", "node2"]),
        ("node[1-2,07],gpu1", ["node1", "node2", "node07", "gpu1"]),
        ("n[008-010]", ["n008", "n009", "n010"]),
        ("r[1-2]n[3-4]", ["r1n3", "r1n4", "r2n3", "r2n4"]),
        ("a1,b[2]", ["a1", "b2"]),
        ("", []),
    ],
)
def test_node_lists_are_read_without_slurm(nodelist: str, names: list[str]) -> None:
    assert scontrol.expanded(nodelist) == names


def test_an_element_of_an_array_goes_by_its_index(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "36")
    monkeypatch.delenv("SLURM_ARRAY_JOB_ID", raising=False)
    assert scontrol.this_job() == "36"
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "36")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    assert scontrol.this_job() == "36_3"


def test_a_path_with_a_space_and_a_comment_that_looks_like_a_field() -> None:
    text = f"{RUNNING} Comment=JobState=FAILED StdOut=/runs/my run/1_0_log.out Power="
    assert scontrol.parse_job(text).log == "/runs/my run/1_0_log.out"
    assert not scontrol.parse_job(text).ending


def test_a_job_that_somebody_cancels_and_one_that_is_queued_again() -> None:
    cancelled = RUNNING.replace("JobState=RUNNING", "JobState=COMPLETING")
    assert scontrol.parse_job(cancelled).ending
    assert scontrol.parse_job(cancelled.replace("Restarts=0", "Restarts=1")).restarts == 1
    assert scontrol.parse_job(cancelled.replace("PreemptTime=None", "PreemptTime=2026-11-25T17:48:39")).preempted


def test_the_limit_counts_not_the_end_that_moves_when_a_job_is_cancelled() -> None:
    cut = RUNNING.replace("EndTime=2026-11-25T17:50:25", "EndTime=2026-11-25T17:48:29")
    assert scontrol.parse_job(cut).end_time == scontrol.parse_job(RUNNING).end_time
    long = RUNNING.replace("TimeLimit=00:02:00", "TimeLimit=7-00:00:00")
    assert scontrol.parse_job(long).end_time == scontrol.parse_job(RUNNING).end_time + 7 * 86400 - 120


@pytest.mark.parametrize("text", ["", "JobId=1 TimeLimit=UNLIMITED StartTime=Unknown", "slurm_load_jobs error: ..."])
def test_what_says_nothing_is_an_undisturbed_job(text: str) -> None:
    assert scontrol.parse_job(text) == scontrol.JobFacts()


def test_where_there_is_no_slurm(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert scontrol.job_facts("1") == scontrol.JobFacts()
    assert not scontrol.requeue("1")
    assert not scontrol.requeue("1", ["node1"])
    assert scontrol.submit_successor(tmp_path / "script.sh", "1") is None
    assert scontrol.kill_wait_s() == 30.0
