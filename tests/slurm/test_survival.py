"""Preemption, time limits, lost nodes, crashes and cancellation: what goes on by itself, and what must not."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.launching_command import launch, metrics, numbers
from tests.slurm.cluster import Submitted, ask, submit, testcluster, wait_for

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(600)]
TINY = "debug/tiny.gin"
LOCAL_FOUR = ["Local.num_processes=4", "Local.threads_per_process=1", "launch.executor='local'"]
PACED = str(Path(__file__).parent / "paced.gin")


def paced(seconds: float, fail_file: Path | str = "") -> list[str]:
    return [f"PacedCrossEntropyLoss.seconds={seconds}", f"PacedCrossEntropyLoss.fail_file='{fail_file}'"]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty steps of four processes on this machine."""
    runs = tmp_path_factory.mktemp("undisturbed")
    done = launch(
        PACED, [*paced(0.0), "launch.executor='local'", *LOCAL_FOUR[:2]], "--runs_dir", str(runs), "--name", "run"
    )
    assert done.returncode == 0, done.stderr
    return runs / "run"


def test_a_preempted_run_continues_as_if_nothing_had_happened(undisturbed: Path, tmp_path: Path) -> None:
    run = submit([PACED, "tracking/wandb.gin"], paced(0.3), runs_dir=tmp_path, name="run")
    run.wait_for_step(5)
    ask("sbatch", "--partition=urgent", "--nodes=4", "--exclusive", "--output=/dev/null", "--wrap=sleep 3")
    wait_for("the checkpoint", lambda: run.state.get("status") == "queued", 60, run.log)
    stopped_at = json.loads((run.path / "attempts" / "0001" / "exit.json").read_text())
    assert stopped_at["reason"] == "stopped"
    assert 5 <= stopped_at["step"] < 40
    assert (run.path / "checkpoints" / f"step-{stopped_at['step']:08d}").is_dir()
    assert run.wait_until_over() == "COMPLETED", run.log()
    assert run.state["status"] == "finished"
    assert run.attempts == 2
    assert numbers(run.path) == numbers(undisturbed)
    ids = {path.name.rsplit("-", 1)[1] for path in (run.path / "wandb").glob("offline-run-*")}
    assert len(ids) == 1, "one W&B run across attempts"


def test_a_time_limit_that_comes_twice_is_a_chain_to_the_end(tmp_path: Path) -> None:
    params = [*paced(1.0), "NUM_STEPS=66", "Slurm.time='0:01:00'", "Slurm.signal_lead_s=20", "CHECKPOINT_EVERY=1000"]
    run = submit(PACED, params, runs_dir=tmp_path, name="run")
    run.wait_for_status("finished", "failed", "cancelled", timeout_s=480)
    assert run.wait_until_over() == "COMPLETED", run.log()
    assert run.attempts >= 3
    endings = [json.loads(path.read_text()) for path in sorted((run.path / "attempts").glob("*/exit.json"))]
    assert [ending["reason"] for ending in endings] == ["stopped"] * (run.attempts - 1) + ["finished"]
    assert [line["step"] for line in metrics(run.path) if "train/loss" in line] == list(range(1, 67))


def test_a_node_cut_off_the_network_costs_one_save_interval_at_most(undisturbed: Path, tmp_path: Path) -> None:
    run = submit(PACED, paced(0.4), runs_dir=tmp_path, name="run")
    run.wait_for_step(10)
    lost = run.state["job"]["hosts"][1]
    with cut(lost):
        reached = max(line["step"] for line in metrics(run.path))
        wait_for("another attempt", lambda: run.attempts == 2, 240, run.log)
        assert lost not in run.state["job"]["hosts"]
        run.wait_for_step(reached + 1)
        first = min(line["step"] for line in metrics(run.path) if line["attempt"] == 2)
        assert first > reached - 8, "more than one save interval was lost"
        assert run.wait_until_over(timeout_s=240) == "COMPLETED", run.log()
    assert numbers(run.path) == numbers(undisturbed)


def test_a_node_without_power_is_survived_too(undisturbed: Path, tmp_path: Path) -> None:
    run = submit(PACED, paced(0.4), runs_dir=tmp_path, name="run")
    run.wait_for_step(10)
    first = run.state["job"]["hosts"][0]
    testcluster("kill", first)  # rank 0, the script and their slurmd
    try:
        wait_for("another attempt", lambda: run.attempts == 2, 240, run.log)
    finally:
        testcluster("boot", first)
    assert run.wait_until_over(timeout_s=240) == "COMPLETED", run.log()
    assert numbers(run.path) == numbers(undisturbed)


def test_a_host_that_hangs_is_named_and_kept_off_the_next_attempt(undisturbed: Path, tmp_path: Path) -> None:
    hangs = "Slurm.environment={'GLOO_SOCKET_IFNAME': 'eth0', 'PACED_HANGS_ON': 'node2', 'MODLIB_MEET_TIMEOUT_S': '15'}"
    run = submit(PACED, [*paced(0.0), hangs], runs_dir=tmp_path, name="run")
    assert run.wait_until_over(timeout_s=240) == "COMPLETED", run.log()
    assert "rank 2, 3 (host node2) did not reach the rendezvous within 15 s" in run.log()
    assert "the next attempt keeps off node2" in run.log()
    assert run.attempts == 2
    assert run.state["excluded_hosts"] == ["node2"]
    assert "node2" not in run.state["job"]["hosts"]
    assert numbers(run.path) == numbers(undisturbed)


def test_a_host_that_freezes_in_training_is_kept_off_the_next_attempt(undisturbed: Path, tmp_path: Path) -> None:
    run = submit(PACED, [*paced(0.3), "train.hang_limit_s=20"], runs_dir=tmp_path, name="run")
    run.wait_for_step(9)
    host = run.state["job"]["hosts"][1]
    ask("kill", "-STOP", rank_pid(run, 2), rank_pid(run, 3))
    assert run.wait_until_over(timeout_s=240) == "COMPLETED", run.log()
    assert f"no progress for 20 s: rank 2, 3 ({host}) wrote no stacks, as if frozen or gone; rank 0, 1 (" in run.log()
    assert f"the next attempt keeps off {host}" in run.log()
    written = {path.name for path in (run.path / "attempts" / "0001" / "stacks").iterdir()}
    assert written >= {"rank-0.txt", "rank-1.txt"}  # SLURM wakes the others to end them: they may write theirs then
    assert json.loads((run.path / "attempts" / "0001" / "exit.json").read_text())["exit_code"] == 6
    assert run.attempts == 2
    assert numbers(run.path) == numbers(undisturbed)


def rank_pid(run: Submitted, rank: int) -> str:
    """The process of a rank."""
    pids = ask("pgrep", "-f", f"submitit.core._submit {run.path}/submitit").split()
    wanted = f"SLURM_PROCID={rank}\0".encode()
    return next(pid for pid in pids if wanted in Path(f"/proc/{pid}/environ").read_bytes())


def test_a_killed_rank_is_a_crash_that_continues(undisturbed: Path, tmp_path: Path) -> None:
    run = submit(PACED, paced(0.3), runs_dir=tmp_path, name="run")
    run.wait_for_step(9)
    ask("kill", "-9", rank_pid(run, 3))
    assert run.wait_until_over(timeout_s=240) == "COMPLETED", run.log()
    assert run.attempts == 2
    assert numbers(run.path) == numbers(undisturbed)


def test_a_rank_that_raises_fails_the_job_at_once_with_its_error_last(tmp_path: Path) -> None:
    fail = tmp_path / "fail"
    run = submit(PACED, paced(0.2, fail), runs_dir=tmp_path, name="run")
    run.wait_for_step(3)
    fail.write_text("2")
    started = time.monotonic()
    assert run.wait_until_over() == "FAILED"
    assert time.monotonic() - started < 30
    assert run.state["status"] == "failed"
    assert run.attempts == 1
    last = run.log().rstrip().splitlines()[-1]
    assert last == "ArithmeticError: the loss of this rank fails on purpose"
    assert "rank 2 on node2 failed first" in run.log()
    assert "ExitCode=1:0" in ask("scontrol", "--oneliner", "show", "job", run.job_id)


def test_an_error_of_its_own_class_is_the_jobs_exit_code(tmp_path: Path) -> None:
    run = submit(TINY, ["LR=1e30", "NUM_STEPS=30"], runs_dir=tmp_path, name="run")
    assert run.wait_until_over() == "FAILED"
    assert "ExitCode=5:0" in ask("scontrol", "--oneliner", "show", "job", run.job_id), run.log()
    assert run.state["exit_code"] == 5


def test_a_cancelled_job_is_saved_and_not_queued_again_and_leaves_no_process(tmp_path: Path) -> None:
    params = [*paced(0.3), "DataLoader.num_workers=2"]
    run = submit([PACED, "tracking/wandb.gin"], params, runs_dir=tmp_path, name="run")
    reached = run.wait_for_step(4)
    ask("scancel", run.job_id)
    assert run.wait_until_over() == "CANCELLED"
    run.wait_for_status("cancelled")
    assert ask("squeue", "-h").strip() == ""
    assert run.state["step"] >= reached
    wait_for("the end of all its processes", lambda: not processes_of(run), 30)
    assert (run.path / "checkpoints" / f"step-{run.state['step']:08d}").is_dir()


def test_a_site_that_forbids_requeueing_gets_a_successor(undisturbed: Path, tmp_path: Path) -> None:
    run = submit(PACED, [*paced(0.3), "Slurm.requeue=False"], runs_dir=tmp_path, name="run")
    for number, step in enumerate((5, 15), 1):  # the successor has one, too
        run.wait_for_step(step)
        ask("scancel", "--signal=USR2", run.job_id)
        wait_for("a successor", lambda many=number + 1: len(run.job_ids) == many, 60, run.log)
    assert run.wait_until_over() == "COMPLETED", run.log()
    assert run.attempts == 3
    assert numbers(run.path) == numbers(undisturbed)
    assert "its successor, job" in run.log()


def test_a_lost_node_is_no_cancellation_where_requeueing_is_forbidden(undisturbed: Path, tmp_path: Path) -> None:
    run = submit(PACED, [*paced(0.4), "Slurm.requeue=False"], runs_dir=tmp_path, name="run")
    run.wait_for_step(10)
    with cut(run.state["job"]["hosts"][1]):
        wait_for("a successor", lambda: len(run.job_ids) == 2, 240, run.log)
        assert run.wait_until_over(timeout_s=240) == "COMPLETED", run.log()
    assert numbers(run.path) == numbers(undisturbed)


def test_jobs_of_a_chain_continue_each_other_and_the_rest_is_cancelled(undisturbed: Path, tmp_path: Path) -> None:
    run = submit(PACED, paced(0.3), "--chain", "3", runs_dir=tmp_path, name="run")
    first, second, third = run.job_ids
    run.wait_for_step(5)
    ask("scancel", "--signal=USR2", first)
    assert run.wait_until_over(first) == "FAILED"  # exit code 75: stopped with everything saved
    assert run.wait_until_over(second) == "COMPLETED", run.log()
    assert run.wait_until_over(third) == "CANCELLED"
    assert numbers(run.path) == numbers(undisturbed)


def test_three_attempts_without_progress_stop(tmp_path: Path) -> None:
    run = submit(PACED, [*paced(30.0), "CHECKPOINT_EVERY=1000"], runs_dir=tmp_path, name="run")
    for attempt in (1, 2, 3):
        wait_for(f"attempt {attempt}", lambda number=attempt: run.attempts == number, 120, run.log)
        wait_for("its ranks", lambda: len(_ranks(run)) == 4, 60, run.log)
        ask("kill", "-9", _ranks(run)[0])
    assert run.wait_until_over() == "FAILED", run.log()
    assert run.attempts == 3
    last = run.log().rstrip().splitlines()[-1]
    assert last.startswith(
        "3 attempts in a row saved no step beyond 0, so run run is not queued again; look for why in "
    )
    assert last.endswith(f"continue with: modlib resume {run.path}")


def processes_of(run: Submitted) -> list[str]:
    """Ranks, data workers, W&B: whatever has inherited the job's environment."""
    mark = f"MODLIB_RUN={run.path}\0".encode()
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if mark in path.read_bytes():
                found.append((path.parent / "cmdline").read_text().replace("\0", " "))
        except OSError:
            continue
    return found


def _ranks(run: Submitted) -> list[str]:
    found = ask("sh", "-c", f"pgrep -f 'submitit.core._submit {run.path}/submitit' || true").split()
    return [pid for pid in found if _is_rank(pid)]


def _is_rank(pid: str) -> bool:
    try:
        return b"SLURM_PROCID=" in Path(f"/proc/{pid}/environ").read_bytes() and "python" in _name(pid)
    except OSError:
        return False


def _name(pid: str) -> str:
    return Path(f"/proc/{pid}/comm").read_text()


@contextmanager
def cut(node: str) -> Iterator[None]:
    testcluster("cut", node)
    try:
        yield
    finally:
        testcluster("heal", node)
