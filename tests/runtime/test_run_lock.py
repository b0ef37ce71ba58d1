"""One trainer at a time between real processes: killed, without file locks, on other hosts."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from modlib.runtime import run_lock
from modlib.runtime.errors import RunFolderError
from modlib.runtime.run_folder import RunFolder

DEADLINE_S = 30.0
HOLDER = """
import errno, fcntl, sys, time
if "without_locks" in sys.argv:
    def refuse(*_):
        raise OSError(errno.ENOTSUP, "Operation not supported")
    fcntl.flock = refuse
from modlib.runtime import run_lock
from modlib.runtime.logs import start_logging
from modlib.runtime.run_folder import RunFolder
start_logging()
run_lock.LEASE_RENEWED_S = 0.05 if "looks_often" in sys.argv else run_lock.LEASE_RENEWED_S
run = RunFolder(sys.argv[1])
with run.lock():
    if "trains" in sys.argv:
        run.begin_attempt()
    print("held", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    folder = RunFolder(tmp_path / "runs" / "gpt2-0123abcd")
    folder.create()
    return folder


@contextmanager
def holder(run: RunFolder, *words: str) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the run until its stdin is closed."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(run.path), *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line == "held\n", process.communicate(timeout=DEADLINE_S)[1]
        yield process
    finally:
        process.kill()
        process.communicate()


def without_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a file system that refuses flock."""

    def refuse(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(run_lock.fcntl, "flock", refuse)


def lease_of(run: RunFolder, **changes: object) -> Path:
    """Leave a lease as another process would."""
    path = run.path / "lease.json"
    path.write_text(json.dumps({"host": "node7", "pid": 4711, "started": 1.0, "since": 1.0} | changes))
    return path


@pytest.mark.parametrize("words", [(), ("without_locks",)])
def test_a_second_process_is_refused_and_told_who_holds_it(
    run: RunFolder, words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    if words:
        without_locks(monkeypatch)
    with holder(run, *words) as process:
        with pytest.raises(RunFolderError) as caught, run.lock():
            raise AssertionError("locked twice")
        text = str(caught.value)
        assert f"run folder ({run.path}) must have one trainer at a time: process {process.pid} on " in text
        assert f" on {socket.gethostname()} holds it since " in text
        since = re.search(r"since (\d{4}-\d\d-\d\d \d\d:\d\d:\d\d);", text)
        assert since is not None
        assert time.mktime(time.strptime(since[1], "%Y-%m-%d %H:%M:%S")) == pytest.approx(time.time(), abs=60)
        assert text.endswith("; wait for it, stop it, or choose another --name")
        process.communicate("\n", timeout=DEADLINE_S)
        assert process.returncode == 0
    with run.lock():
        pass


@pytest.mark.parametrize("words", [(), ("without_locks",)])
def test_the_lease_of_a_killed_process_is_taken_over_with_a_word(
    run: RunFolder, words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    if words:
        without_locks(monkeypatch)
    with holder(run, *words) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
    with caplog.at_level("INFO", "modlib"), run.lock():
        lease = json.loads((run.path / "lease.json").read_text())
        assert (lease["host"], lease["pid"]) == (socket.gethostname(), os.getpid())
    assert caplog.messages == [f"taking over from process {process.pid} on {socket.gethostname()}, which is gone"]
    assert (run.path / "lease.json").read_text() == "{}\n"


def test_a_lock_that_was_given_back_is_taken_without_a_word(run: RunFolder, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "modlib"):
        for _ in range(2):
            with run.lock():
                pass
        with pytest.raises(KeyError), run.lock():
            raise KeyError
        with run.lock():
            pass
    assert caplog.messages == []
    assert not [thread for thread in threading.enumerate() if thread.name == "modlib-lease"]


def test_the_same_process_cannot_hold_it_twice(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    with run.lock(), pytest.raises(RunFolderError, match=f"process {os.getpid()} on"), run.lock():
        pass
    without_locks(monkeypatch)
    with run.lock(), pytest.raises(RunFolderError, match=f"process {os.getpid()} on"), run.lock():
        pass


def test_another_process_that_got_the_number_of_a_dead_holder_is_no_holder(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_locks(monkeypatch)
    lease_of(run, host=socket.gethostname(), pid=os.getpid(), started=1.0)
    with run.lock():
        pass


@pytest.mark.parametrize("torn", ["", '{"host": "no', "[]", "{}"])
def test_a_torn_lease_that_nobody_holds_is_taken(run: RunFolder, torn: str) -> None:
    (run.path / "lease.json").write_text(torn)
    with run.lock():
        assert json.loads((run.path / "lease.json").read_text())["pid"] == os.getpid()


def test_another_hosts_lease_counts_while_it_is_renewed(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(run_lock, "LEASE_LASTS_S", 5.0)
    path = lease_of(run)
    timer = threading.Timer(0.3, os.utime, [path])
    timer.start()
    with caplog.at_level("INFO", "modlib"), pytest.raises(RunFolderError, match="process 4711 on node7 holds it since"):
        run.lock().__enter__()
    timer.join()
    assert caplog.messages == ["watching for 5 s whether process 4711 on node7 still renews its lease"]


def test_another_hosts_lease_that_is_not_renewed_is_taken_over(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(run_lock, "LEASE_LASTS_S", 0.3)
    lease_of(run)
    with caplog.at_level("INFO", "modlib"), run.lock():
        pass
    assert caplog.messages[-1] == "taking over from process 4711 on node7, which is gone"


def test_another_hosts_old_lease_is_taken_over_at_once(run: RunFolder) -> None:
    path = lease_of(run)
    os.utime(path, (1.0, 1.0))
    started = time.monotonic()
    with run.lock():
        pass
    assert time.monotonic() - started < 5


def test_a_held_lease_is_renewed(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_lock, "LEASE_RENEWED_S", 0.01)
    with run.lock():
        path = run.path / "lease.json"
        before, deadline = path.stat().st_mtime_ns, time.monotonic() + DEADLINE_S
        while path.stat().st_mtime_ns == before:
            assert time.monotonic() < deadline
            time.sleep(0.005)


def test_of_two_that_start_at_once_without_locks_one_wins(run: RunFolder) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(run.path), "without_locks"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    try:
        outputs: dict[int, str] = {}

        def first_line(number: int) -> None:
            stdout = processes[number].stdout
            assert stdout is not None
            outputs[number] = stdout.readline()

        readers = [threading.Thread(target=first_line, args=[number]) for number in range(2)]
        for reader in readers:
            reader.start()
        deadline = time.monotonic() + DEADLINE_S
        while all(process.poll() is None for process in processes) or not outputs:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        loser = next(number for number, process in enumerate(processes) if process.poll() is not None)
        readers[1 - loser].join(DEADLINE_S)
        assert outputs[1 - loser] == "held\n"
        error = processes[loser].communicate()[1]
        assert f"process {processes[1 - loser].pid} on" in error
    finally:
        for process in processes:
            process.kill()
            process.wait()


# ----------------------------------------------------------------------------- several processes, and killed ones


def test_the_holder_is_seen_without_waiting_and_without_disturbing_it(run: RunFolder) -> None:
    assert run.holder() is None
    with holder(run) as process:
        before = time.monotonic()
        seen = run.holder()
        assert time.monotonic() - before < 1
        assert seen is not None
        assert (seen["host"], seen["pid"]) == (socket.gethostname(), process.pid)
        assert abs(seen["renewed"] - time.time()) < DEADLINE_S
        process.kill()
        process.wait()
        assert run.holder() is None
        assert (run.path / "lease.json").stat().st_size > 0  # it is left for the next one to take over


def test_the_holder_on_another_host_counts_by_the_age_of_its_lease(run: RunFolder) -> None:
    path = lease_of(run)
    before = time.monotonic()
    seen = run.holder()
    assert time.monotonic() - before < 1
    assert seen is not None
    assert (seen["host"], seen["pid"]) == ("node7", 4711)
    old = time.time() - run_lock.LEASE_LASTS_S - run_lock.CLOCKS_DIFFER_S - 5
    os.utime(path, (old, old))
    assert run.holder() is None


@pytest.mark.parametrize("torn", ["", "{", "[]", '{"host": "HERE", "pid": "x"}', '{"host": "HERE", "started": []}'])
def test_a_torn_lease_names_no_holder(run: RunFolder, torn: str) -> None:
    (run.path / "lease.json").write_text(torn.replace("HERE", socket.gethostname()))
    assert run.holder() is None


def test_a_forked_data_worker_of_a_killed_trainer_does_not_keep_the_run_locked(run: RunFolder) -> None:
    code = (
        "import os, sys, time; from modlib.runtime.run_folder import RunFolder\n"
        "with RunFolder(sys.argv[1]).lock():\n"
        "    if os.fork() == 0:\n"
        "        print('forked', flush=True); time.sleep(60); os._exit(0)\n"
        "    time.sleep(60)"
    )
    trainer = subprocess.Popen(
        [sys.executable, "-c", code, str(run.path)], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        assert trainer.stdout is not None
        assert trainer.stdout.readline() == "forked\n"
        with pytest.raises(RunFolderError, match=f"process {trainer.pid} on"), run.lock():
            pass
        trainer.kill()
        trainer.wait()
        with run.lock():
            pass
    finally:
        os.killpg(trainer.pid, signal.SIGKILL)  # the worker, at last


# ------------------------------------------------------------------------- a lease that is taken away from its owner


def end_of(process: subprocess.Popen[str]) -> tuple[int, str]:
    """How an owner ended whose folder was tampered with."""
    code = process.wait(DEADLINE_S)  # its stdin stays open meanwhile: it does not end in order
    return code, process.communicate()[1]


@pytest.mark.parametrize("words", [(), ("without_locks",)])
def test_an_owner_whose_lease_was_removed_ends_and_the_next_waits_for_that(
    run: RunFolder, words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    if words:
        without_locks(monkeypatch)
    path = run.path / "lease.json"
    with holder(run, "looks_often", "trains", *words) as process:
        process.send_signal(signal.SIGSTOP)  # so that the newcomer is first to see it
        path.unlink()
        threading.Timer(0.5, process.send_signal, [signal.SIGCONT]).start()
        with caplog.at_level("INFO", "modlib"), run.lock():
            assert process.wait(DEADLINE_S) == 4, "both held the run"
            assert json.loads(path.read_text())["pid"] == os.getpid()
        _, err = end_of(process)
    assert caplog.messages == [
        f"lease.json in {run.path} is missing, and process {process.pid} on {socket.gethostname()} may train there "
        "still: waiting up to 25 s for its end"
    ]
    assert err in (
        f"error: lease.json ({path}) must stay while a run trains, but was removed; this process ends now, and what "
        "was not saved yet is lost: repeat the command\n",
        f"error: run folder ({run.path}) must have one trainer at a time, but was taken over by another process; "
        "this process ends now, and what was not saved yet is lost\n",
    )


def test_an_owner_that_does_not_end_keeps_the_next_one_out(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_lock, "LEASE_LASTS_S", 0.3)
    with holder(run, "trains") as process:
        process.send_signal(signal.SIGSTOP)
        (run.path / "lease.json").unlink()
        with pytest.raises(RunFolderError) as caught, run.lock():
            raise AssertionError("locked twice")
    assert str(caught.value) == (
        f"run folder ({run.path}) must have one trainer at a time: process {process.pid} on {socket.gethostname()} "
        "trains there, although lease.json was removed; stop it, or choose another --name"
    )


def test_a_missing_lease_of_another_host_is_waited_for_and_one_that_was_given_back_is_not(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(run_lock, "LEASE_LASTS_S", 0.3)
    with run.lock():
        run.begin_attempt()
        run.update(host="node7")
    with caplog.at_level("INFO", "modlib"), run.lock():  # as between the jobs of one run
        pass
    assert caplog.messages == []
    (run.path / "lease.json").unlink()
    before = time.monotonic()
    with caplog.at_level("INFO", "modlib"), run.lock():
        assert time.monotonic() - before >= 0.3
    assert len(caplog.messages) == 1


def test_an_owner_whose_folder_was_moved_ends_and_says_where_it_is(run: RunFolder) -> None:
    moved = run.path.with_name("moved")
    with holder(run, "looks_often") as process:
        run.path.rename(moved)
        assert end_of(process) == (
            4,
            f"error: run folder ({run.path}) must stay in its place while a run trains, but was moved to {moved}; this "
            f"process ends now, and what was not saved yet is lost: continue with modlib resume {moved}, or move it "
            "back and repeat the command\n",
        )
    assert not run.path.exists()


def test_an_owner_whose_folder_was_removed_ends_and_leaves_nothing(run: RunFolder) -> None:
    with holder(run, "looks_often") as process:
        shutil.rmtree(run.path)
        assert end_of(process) == (
            4,
            f"error: run folder ({run.path}) must stay in its place while a run trains, but was removed; this process "
            "ends now, and nothing is left of the run: repeat the command to start it anew\n",
        )
    assert not run.path.exists()


@pytest.mark.parametrize("words", [(), ("without_locks",)])
def test_an_owner_whose_lease_was_replaced_names_who_took_over(
    run: RunFolder, words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    if words:
        without_locks(monkeypatch)
    path = run.path / "lease.json"
    with holder(run, "looks_often", *words) as process:
        lease = json.loads(path.read_text()) | {"pid": 4711, "host": "node7"}
        if words:
            path.write_text(json.dumps(lease))  # the same file, by a process that saw no lock
        else:
            (run.path / "other").write_text(json.dumps(lease))
            (run.path / "other").rename(path)
        assert end_of(process) == (
            4,
            f"error: run folder ({run.path}) must have one trainer at a time, but was taken over by process 4711 on "
            "node7; this process ends now, and what was not saved yet is lost\n",
        )
    assert json.loads(path.read_text()) == lease, "what the other wrote stays"


def test_a_lease_that_was_emptied_is_written_again(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_lock, "LEASE_RENEWED_S", 0.01)
    path = run.path / "lease.json"
    with run.lock():
        before = path.read_bytes()
        path.write_bytes(b"")
        deadline = time.monotonic() + DEADLINE_S
        while path.read_bytes() != before:
            assert time.monotonic() < deadline
            time.sleep(0.005)


@pytest.mark.parametrize("words", [(), ("without_locks",)])
def test_a_copy_of_a_folder_that_is_trained_into_is_a_run_of_its_own(
    run: RunFolder, words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    if words:
        without_locks(monkeypatch)
    with holder(run, "trains", "looks_often", *words) as process:
        copy = RunFolder(shutil.copytree(run.path, run.path.with_name("copy")))
        assert copy.holder() is None
        with caplog.at_level("INFO", "modlib"), copy.lock():
            assert copy.holder() is not None
            copy.update(step=3)
        assert caplog.messages == [f"run folder ({copy.path}) is a copy; it is a run of its own"]
        (copy.path / "lease.json").unlink()
        with copy.lock():  # run.json says "running", of the process that trains elsewhere
            pass
        assert len(caplog.messages) == 1
        seen = run.holder()
        assert seen is not None
        assert seen["pid"] == process.pid
        with pytest.raises(RunFolderError, match="must have one trainer at a time"), run.lock():
            pass
        assert process.poll() is None


def test_something_else_in_the_place_of_the_lease_is_refused(run: RunFolder) -> None:
    os.mkfifo(run.path / "lease.json")
    with pytest.raises(
        RunFolderError, match=r"lease.json \(.*\) must be a regular file; move away what is in its place"
    ):
        run.lock().__enter__()
