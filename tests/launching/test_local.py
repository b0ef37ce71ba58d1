"""Ranks of this machine, as real processes with real signals: started, stopped, failing, and never left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

import modlib
from modlib.launching.local import Local, run_local, visible_gpus
from modlib.runtime.errors import ConfigError
from modlib.runtime.hardware import num_cores
from modlib.runtime.run_folder import RunFolder
from tests.launching.launched import launched, wait_until

SAVES = """
with StopRequest(grace_s=20) as stop:
    ready()
    while not stop.requested:
        time.sleep(0.01)
    time.sleep(0.2)  # a second signal would come meanwhile
    (run.path / f"saved-{rank}").write_text(stop.signal)
    raise Preempted("stopped at step 7, which is saved; the same command continues")
"""


def test_a_rank_sees_its_place_and_nothing_of_another_launcher(tmp_path: Path) -> None:
    foreign = {
        "RANK": "7", "LOCAL_RANK": "7", "WORLD_SIZE": "8", "GROUP_RANK": "1", "MASTER_ADDR": "node1",
        "MASTER_PORT": "29500", "SLURM_PROCID": "7", "SLURM_NTASKS": "8", "TORCHELASTIC_RUN_ID": "x", "PMI_RANK": "7",
        "OMPI_COMM_WORLD_RANK": "7", "MODLIB_RENDEZVOUS": "file:///gone", "MODLIB_PARENT_PIPE": "99",
        "HF_HOME": "kept", "SLURMISH": "kept",
    }  # fmt: skip
    body = "import json\n(run.path / f'environment-{rank}').write_text(json.dumps(dict(os.environ)))"
    with launched(tmp_path, body, environment=foreign) as one:
        assert one.end() == (0, "")
    for rank in (0, 1):
        seen = json.loads((one.run / f"environment-{rank}").read_text())
        assert (seen["RANK"], seen["LOCAL_RANK"]) == (str(rank), str(rank))
        assert (seen["WORLD_SIZE"], seen["LOCAL_WORLD_SIZE"]) == ("2", "2")
        assert seen["OMP_NUM_THREADS"] == "1"
        assert seen["MODLIB_RENDEZVOUS"].startswith(f"file://{tmp_path}/tmp/modlib-rendezvous-")
        assert (seen["HF_HOME"], seen["SLURMISH"]) == ("kept", "kept")
        for name in foreign:
            if name not in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MODLIB_RENDEZVOUS", "HF_HOME", "SLURMISH"):
                assert name not in seen


def test_ranks_run_the_launchers_modlib_whatever_lies_in_the_working_directory(tmp_path: Path) -> None:
    (tmp_path / "modlib").mkdir()
    (tmp_path / "modlib" / "__init__.py").write_text("raise RuntimeError('the wrong modlib')")
    (tmp_path / "json.py").write_text("raise RuntimeError('the wrong json')")
    environment = Local(2).environment(0, "file:///x")
    code = "import json, modlib; print(modlib.__file__)"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == modlib.__file__, done.stderr


def test_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert visible_gpus() == 0
    assert Local().num_processes == 1
    assert Local().threads_per_process == num_cores()
    assert Local(2).threads_per_process == max(1, num_cores() // 2)
    assert Local(10**6).threads_per_process == 1
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert Local(2).threads_per_process == 3
    assert Local(2, threads_per_process=5).environment(1, "x")["OMP_NUM_THREADS"] == "5"
    for text in ("", "0", "4,2"):
        monkeypatch.setenv("OMP_NUM_THREADS", text)
        assert Local(10**6).threads_per_process == 1


def test_counts_below_one_are_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        Local(num_processes=0, threads_per_process=-1)
    assert caught.value.problems == [
        "Local.num_processes (0) must be at least 1; set it to 1 or more",
        "Local.threads_per_process (-1) must be at least 1; set it to 1 or more",
    ]


def test_output_of_rank_1_is_in_its_log_file_and_of_rank_0_on_the_terminal(tmp_path: Path) -> None:
    body = "print(f'printed by {rank}', file=sys.stderr)\nos.write(2, b'from C by %d\\n' % rank)"
    with launched(tmp_path, body) as one:
        assert one.end() == (0, "printed by 0\nfrom C by 0\n")
    assert one.log(1) == "printed by 1\nfrom C by 1\n"


def test_an_error_of_rank_1_stops_rank_0_and_is_the_last_thing_printed(tmp_path: Path) -> None:
    body = """
if rank == 1:
    wait_for("ready-0")
    raise DataError("tokens (5000) must be below vocab_size (4096); pack the file again")
with StopRequest(grace_s=20) as stop:
    ready()
    while not stop.requested:
        time.sleep(0.01)
    print("rank 0 stops", file=sys.stderr)
"""
    with launched(tmp_path, body) as one:
        code, err = one.end()
    assert code == 3
    lines = err.splitlines()
    assert "rank 0 stops" in err  # its signal thread may write in between
    log = one.logs / "rank-1.out"
    assert lines[-2].startswith("rank 1 on ")
    assert lines[-2].endswith(f" failed first (log: {log})")
    assert lines[-1] == "tokens (5000) must be below vocab_size (4096); pack the file again"
    assert "Traceback (most recent call last)" in log.read_text()


def test_an_unexpected_error_is_printed_with_its_traceback(tmp_path: Path) -> None:
    with launched(tmp_path, "if rank == 1: raise KeyError('weights')\ntime.sleep(60)") as one:
        code, err = one.end()
    assert code == 1
    assert err.splitlines()[-1] == "KeyError: 'weights'"
    assert "Traceback (most recent call last)" in err


def test_a_consequence_on_rank_0_is_not_taken_for_the_cause(tmp_path: Path) -> None:
    body = """
if rank == 1:
    try:
        raise DataError("the cause")
    finally:
        (run.path / "cause").touch()
if rank == 0:
    wait_for("attempts/0001/logs/rank-1.error.json")
    raise RuntimeError("connection closed by peer")
"""
    with launched(tmp_path, body) as one:
        code, err = one.end()
    assert code == 3
    assert err.splitlines()[-1] == "the cause"


@pytest.mark.parametrize("consequence", ["time.sleep(60)", "wait_until_gone()"])
def test_a_killed_rank_ends_the_others_in_seconds_and_is_named(tmp_path: Path, consequence: str) -> None:
    body = f"""
def wait_until_gone():
    wait_for("ready-1")
    while os.path.exists("/proc/" + (run.path / "ready-1").read_text() + "/exe"):
        pass
    raise RuntimeError("connection closed by peer")
if rank == 0:
    ready()
    {consequence}
wait_for("ready-0")
ready()
time.sleep(60)
"""
    with launched(tmp_path, body) as one:
        one.wait_for_ranks()
        killed_at = time.monotonic()
        os.kill(one.pids[1], signal.SIGKILL)
        code, err = one.end()
        assert time.monotonic() - killed_at < 8
    assert code == 1
    assert err.splitlines()[-1] == (
        f"rank 1 was killed by SIGKILL, as the system does when memory runs out (log: {one.logs / 'rank-1.out'})"
    )


@pytest.mark.parametrize(
    ("body", "code", "text"),
    [
        ("os.kill(os.getpid(), signal.SIGSEGV)", 1, "rank 1 was killed by SIGSEGV (log: "),
        ("os.kill(os.getpid(), 40)", 1, "rank 1 was killed by signal 40 (log: "),
        ("os._exit(9)", 9, "rank 1 ended with exit code 9 and recorded no error (log: "),
    ],
)
def test_a_rank_that_ends_without_a_word_is_named_with_the_end_of_its_log(
    tmp_path: Path, body: str, code: int, text: str
) -> None:
    with launched(
        tmp_path, f"if rank == 1:\n    print('last words', file=sys.stderr)\n    {body}\ntime.sleep(60)"
    ) as one:
        ended, err = one.end()
    assert ended == code
    lines = err.splitlines()
    assert lines[-2].startswith(text)
    assert lines[-1] == "    last words"


def test_what_a_failed_rank_started_ends_too(tmp_path: Path) -> None:
    body = """
subprocess.Popen(["sleep", "600"])
ready()
if rank == 1:
    os._exit(9)
time.sleep(60)
"""
    with launched(tmp_path, body) as one:  # checks at its end that nothing is left
        assert one.end()[0] == 9


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2, signal.SIGINT, signal.SIGHUP])
def test_a_signal_reaches_each_rank_once_and_they_save(tmp_path: Path, number: signal.Signals) -> None:
    with launched(tmp_path, SAVES) as one:
        one.wait_for_ranks()
        os.killpg(one.process.pid, number)  # as a terminal or a scheduler does: to the launcher's whole group
        code, err = one.end()
    assert code == 75
    for rank in (0, 1):
        assert (one.run / f"saved-{rank}").read_text() == signal.Signals(number).name
        text = err if rank == 0 else one.log(1)
        assert text.count(f"{signal.Signals(number).name}: saving and stopping within 20 s") == 1
        assert "already stopping" not in text
    assert err.splitlines()[-1].endswith("stopped at step 7, which is saved; the same command continues")


def test_a_second_ctrl_c_ends_everything_now(tmp_path: Path) -> None:
    body = "stop = StopRequest(grace_s=50).install()\nready()\ntime.sleep(60)\ntime.sleep(60)"
    with launched(tmp_path, body, grace_s=60) as one:
        one.wait_for_ranks()
        one.process.send_signal(signal.SIGINT)
        wait_until(lambda: "SIGINT" in one.log(1))
        sent = time.monotonic()
        one.process.send_signal(signal.SIGINT)
        code, err = one.end()
        assert time.monotonic() - sent < 3
    assert code == 130
    assert err.splitlines()[-1] == "interrupted twice: stopped now, without saving"


def test_a_signal_before_training_begins_is_no_failure(tmp_path: Path) -> None:
    with launched(tmp_path, "ready()\ntime.sleep(60)") as one:
        one.wait_for_ranks()
        one.process.send_signal(signal.SIGTERM)
        assert one.end() == (75, "SIGTERM: stopped before training began; the same command continues\n")


def test_a_rank_that_ignores_the_signal_is_killed_after_the_grace(tmp_path: Path) -> None:
    body = """
if rank == 0:
    signal.signal(signal.SIGTERM, lambda *_: os._exit(75))
else:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
ready()
while True:
    time.sleep(60)
"""
    with launched(tmp_path, body, grace_s=1) as one:
        one.wait_for_ranks()
        sent = time.monotonic()
        one.process.send_signal(signal.SIGTERM)
        code, err = one.end()
        assert 1 <= time.monotonic() - sent < 5
    assert code == 75
    log = one.logs / "rank-1.out"
    assert err == (
        f"SIGTERM: rank 1 did not stop in time and was killed; the last saved checkpoint counts (log: {log})\n"
    )


def test_a_stop_that_one_rank_alone_heard_of_does_not_wait_for_the_others_for_ever(tmp_path: Path) -> None:
    with launched(tmp_path, "ready()\nif rank == 1: os._exit(75)\ntime.sleep(60)", grace_s=1) as one:
        code, err = one.end()
    assert code == 75
    assert err.startswith(
        "rank 1 left with exit code 75 before training was over: rank 0 did not stop in time and was killed"
    )


@pytest.mark.parametrize(("left", "code"), [(0, 1), (75, 7)])
def test_a_rank_that_leaves_early_is_named_although_the_others_fail_in_its_wake(
    tmp_path: Path, left: int, code: int
) -> None:
    body = f"""
print("the last line of rank", rank)
if rank == 1:
    os._exit({left})
(run.path / "metrics.jsonl").write_text('{{"step": 3, "attempt": 1, "train/loss": 1.0}}\\n')
time.sleep(0.2)
raise RuntimeError("[gloo/transport/tcp/pair.cc:538] Connection closed by peer [127.0.0.1]:41552")
"""
    with launched(tmp_path, body) as one:
        found, err = one.end()
    assert found == code
    assert err.endswith(
        f"rank 1 left with exit code {left} before training was over, and the others failed without it "
        f"(log: {one.logs / 'rank-1.out'})\n    the last line of rank 1\n"
    )


def test_a_rank_that_is_killed_while_it_stops_costs_steps(tmp_path: Path) -> None:
    body = """
if rank == 0:
    (run.path / "metrics.jsonl").write_text('{"step": 3, "attempt": 1, "train/loss": 1.0}\\n')
signal.signal(signal.SIGTERM, (lambda *_: os._exit(75)) if rank == 0 else signal.SIG_IGN)
ready()
while True:
    time.sleep(60)
"""
    with launched(tmp_path, body, grace_s=0.5) as one:
        one.wait_for_ranks()
        one.process.send_signal(signal.SIGTERM)
        assert one.end()[0] == 7


def test_a_signal_before_a_rank_has_its_handlers_waits_for_them(tmp_path: Path) -> None:
    slow = "time.sleep(0.5)\nwith StopRequest(starting=True):\n    ready()\n    time.sleep(60)"
    own_start = {"PYTHONHASHSEED": "17"}  # a forked process would not inherit what the launcher blocks
    with launched(tmp_path, slow, environment={"BLOCKED": "1", **own_start}) as one:
        wait_until(lambda: one.logs.exists() and len(list(one.logs.iterdir())) == 2)
        one.process.send_signal(signal.SIGUSR2)
        code, err = one.end()
    assert code == 75
    assert err == "warning: [rank 0] SIGUSR2: stopped before training began; the same command continues\n"


def test_a_failure_while_saving_outranks_the_stop(tmp_path: Path) -> None:
    body = SAVES.replace("raise Preempted", "if rank == 1: raise DataError('the save failed')\n    raise Preempted")
    with launched(tmp_path, body) as one:
        one.wait_for_ranks()
        one.process.send_signal(signal.SIGTERM)
        code, err = one.end()
    assert code == 3
    assert err.splitlines()[-1] == "the save failed"


def test_ranks_and_what_they_started_die_with_the_launcher(tmp_path: Path) -> None:
    body = """
signal.signal(signal.SIGTERM, signal.SIG_IGN)
subprocess.Popen(["sleep", "600"])
ready()
while True:
    time.sleep(60)
"""
    with launched(tmp_path, body) as one:  # checks at its end that nothing is left
        one.wait_for_ranks()
        os.kill(one.process.pid, signal.SIGKILL)
        assert one.end()[0] == -signal.SIGKILL


def test_a_full_terminal_and_an_ignored_sigchld_do_not_change_the_exit_code(tmp_path: Path) -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    try:
        with launched(
            tmp_path,
            "if rank == 1: raise DataError('too short')\ntime.sleep(60)",
            stderr=full,
            before_exec=lambda: signal.signal(signal.SIGCHLD, signal.SIG_IGN),
        ) as one:
            assert one.end()[0] == 3
    finally:
        os.close(full)


def test_a_start_that_fails_halfway_leaves_no_rank_and_gives_the_signals_back(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    run.create()
    attempt = run.begin_attempt()
    attempt.log_path(1).mkdir()
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD)}
    descriptors = set(os.listdir("/proc/self/fd"))
    with pytest.raises(IsADirectoryError):
        run_local([sys.executable, "-c", "import time; time.sleep(60)"], Local(2, 1), run, attempt)
    alive = [child for child in psutil.Process().children() if child.status() != psutil.STATUS_ZOMBIE]
    assert not [child for child in alive if "time.sleep(60)" in child.cmdline()]
    assert {number: signal.getsignal(number) for number in before} == before
    assert set(os.listdir("/proc/self/fd")) == descriptors
