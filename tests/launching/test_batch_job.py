"""What a job does around its ranks, on a machine whose SLURM does not answer: decisions, texts and exit codes.

With a SLURM that does, the same is shown in tests/slurm/test_survival.py.
"""

from __future__ import annotations

import hashlib
import json
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from modlib.launching import batch_job
from modlib.launching.batch_job import FIRST_PORT, LAST_PORT, PORTS_PER_JOB, begin, end, free_port
from modlib.runtime.errors import EXIT_HANG, RunFolderError
from modlib.runtime.run_folder import RunFolder


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    """A run in the first attempt of job 41, on a machine without SLURM's commands."""
    monkeypatch.setenv("PATH", str(tmp_path))
    for name, value in {
        "SLURM_JOB_ID": "41",
        "SLURM_NTASKS_PER_NODE": "2",
        "MODLIB_ATTEMPT": "1",
        "MODLIB_SUBMITIT": str(tmp_path),
    }.items():
        monkeypatch.setenv(name, value)
    for name in ("SLURM_RESTART_COUNT", "SLURM_ARRAY_JOB_ID", "MODLIB_CODE", "MODLIB_SCRIPT"):
        monkeypatch.delenv(name, raising=False)
    run = RunFolder(tmp_path / "runs" / "run")
    run.create()
    return run


def record(
    run: RunFolder, rank: int, message: str, *, code: int = 1, kind: str = "RuntimeError", **more: object
) -> None:
    path = run.attempt(1).error_path(rank)
    error = {"rank": rank, "host": f"node{rank}", "time": time.time(), "type": kind, "message": message}
    path.write_text(json.dumps({**error, "traceback": f"{kind}: {message}", "exit_code": code, **more}))


def test_begin_gives_the_ranks_their_place(run: RunFolder) -> None:
    variables = begin(run)
    assert variables is not None
    host = socket.gethostname()
    assert variables["MODLIB_ATTEMPT"] == "1"
    assert variables["MODLIB_HOSTS"] == f"{host},{host}"
    assert variables["MODLIB_RENDEZVOUS"].startswith(f"tcp://{host}:2")
    assert variables["MODLIB_RENDEZVOUS_TOKEN"] == "run/1/41.0"
    assert variables["MODLIB_GRACE_S"] == "25"
    assert run.read()["status"] == "running"
    assert run.read()["job"]["id"] == "41"


def test_a_finished_run_begins_no_more(run: RunFolder) -> None:
    run.update(status="finished")
    assert begin(run) is None
    assert run.num_attempts == 0


def test_a_second_job_cannot_begin_while_one_trains(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_job, "LOCK_WAIT_S", 0.0)
    with run.lock(), pytest.raises(RunFolderError, match="must have one trainer at a time"):
        begin(run)
    assert run.num_attempts == 0


def test_the_end_of_a_finished_run(run: RunFolder) -> None:
    begin(run)
    run.update(status="finished", step=40)
    assert end(run, 0) == 0
    assert run.attempt(1).ending()["reason"] == "finished"


def test_a_finished_run_whose_metrics_could_not_be_written_ends_with_4_and_is_not_queued_again(run: RunFolder) -> None:
    begin(run)
    run.update(status="finished", step=40, lost_metrics=3)
    (run.checkpoints_path / "step-00000040").mkdir()
    assert end(run, 4) == 4
    assert (run.attempt(1).ending()["reason"], run.attempt(1).ending()["exit_code"]) == ("finished", 4)
    assert run.read()["status"] == "finished"
    assert begin(run) is None


def test_a_run_that_is_saved_to_its_end_is_finished_though_run_json_could_not_say_so(run: RunFolder) -> None:
    begin(run)
    run.update(num_steps=40, step=30)
    (run.checkpoints_path / "step-00000040").mkdir()
    assert end(run, 4) == 4
    assert run.read()["status"] == "finished"
    assert run.attempt(1).ending()["reason"] == "finished"


def test_a_stop_that_nobody_can_queue_again_names_the_command(
    run: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    begin(run)
    run.update(status="stopped", step=12)
    assert end(run, 0) == 75
    assert capsys.readouterr().err.splitlines()[-1] == (
        "step 12 is saved, but SLURM lets job 41 neither be queued again nor submit a successor; "
        f"continue with: modlib resume {run.path}"
    )
    assert run.read()["status"] == "stopped"


def test_a_ranks_own_error_ends_the_run_and_is_the_last_word(
    run: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    begin(run)
    record(run, 0, "[gloo/transport/tcp/pair.cc:538] Connection closed by peer [10.77.0.12]:41552")
    record(run, 1, "token id 60000 is out of range", code=3, kind="DataError")
    assert end(run, 3) == 3
    assert capsys.readouterr().err.rstrip().endswith("DataError: token id 60000 is out of range")
    assert run.read()["status"] == "failed"


def test_a_lost_peer_is_a_crash_that_goes_on(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    begin(run)
    run.update(step=8)
    record(run, 0, LOST)
    assert end(run, 1) == 75
    assert run.attempt(1).ending()["reason"] == "died"
    assert "modlib resume" in capsys.readouterr().err


LOST = "[gloo/transport/tcp/pair.cc:538] Connection closed by peer [10.77.0.12]:41552"


@pytest.mark.parametrize(
    ("recorded", "how"),
    [
        (True, "rank 1 left with exit code 0 before training was over, and the others failed without it"),
        (
            False,
            "rank 1 left before training was over and recorded no error (ended by exit code 0 or killed), "
            "and the others failed without it",
        ),
    ],
)
def test_a_rank_that_leaves_early_is_named_although_the_others_fail_in_its_wake(
    run: RunFolder, capsys: pytest.CaptureFixture[str], recorded: bool, how: str
) -> None:
    begin(run)
    run.update(step=8)
    record(run, 0, LOST)
    if recorded:
        record(run, 1, "0", code=0, kind="SystemExit")
    log = run.attempt(1).log_path(1)
    log.write_text("the last line of rank 1\n")
    assert end(run, 1) == 75
    assert f"{how} (log: {log})\n    the last line of rank 1\n" in capsys.readouterr().err


def test_a_broken_machine_is_blamed_not_the_run(run: RunFolder) -> None:
    begin(run)
    run.update(step=8)
    record(run, 1, "CUDA error: uncorrectable ECC error encountered")
    assert end(run, 1) == 75
    assert run.read()["excluded_hosts"] == ["node1"]


def test_a_job_waits_for_a_run_that_is_let_go(run: RunFolder) -> None:
    lock = run.lock()
    lock.__enter__()
    with ThreadPoolExecutor(1) as pool:
        begun = pool.submit(begin, run)
        time.sleep(0.3)
        assert not begun.done()
        lock.__exit__(None, None, None)
        assert begun.result(timeout=20) is not None


def test_a_config_changed_since_the_submission_is_refused(run: RunFolder) -> None:
    run.config_path.write_text("train.seed = 1\n")
    run.update(slurm={"config_sha256": hashlib.sha256(b"train.seed = 0\n").hexdigest()})
    with pytest.raises(RunFolderError, match="must be the one that was submitted, but was changed since"):
        begin(run)


def test_a_run_that_began_elsewhere_meanwhile_is_left_alone(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    begin(run)
    run.begin_attempt()
    assert end(run, 1) == 1
    assert run.read()["status"] == "running"
    assert "attempt 2 of run run has begun elsewhere" in capsys.readouterr().err


def test_hosts_that_an_error_blames_are_kept_off(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    begin(run)
    run.update(step=8)
    record(run, 0, "rank 2 did not come", code=EXIT_HANG, kind="HangError", hosts=["node7"])
    end(run, 6)
    assert run.read()["excluded_hosts"] == ["node7"]
    assert "the next attempt keeps off node7" in capsys.readouterr().err


def test_ports_differ_and_lie_below_the_ephemeral_range() -> None:
    ports = [free_port(str(job), restart) for job in range(1000, 1200) for restart in (0, 1)]
    assert all(port >= FIRST_PORT and port + PORTS_PER_JOB - 1 <= LAST_PORT for port in ports)
    # one that another process has taken just now is passed over, and may then be the next job's
    assert len({free_port(str(job), 0) for job in range(1000, 1200)}) >= 195


def test_a_port_that_is_taken_is_passed_over() -> None:
    port = free_port("1234", 0)
    with socket.socket() as taken:
        taken.bind(("", port))
        taken.listen()
        assert free_port("1234", 0) != port
