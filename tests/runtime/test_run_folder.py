"""The run folder: names, identity, attempts, and one trainer at a time between real processes."""

from __future__ import annotations

import json
import os
import re
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

from modlib.runtime import faults, run_folder
from modlib.runtime.errors import ConfigError, RunFolderError
from modlib.runtime.run_folder import RunFolder, check_name, versions

DEADLINE_S = 30.0
HOLDER = """
import errno, fcntl, sys, time
if "without_locks" in sys.argv:
    def refuse(*_):
        raise OSError(errno.ENOTSUP, "Operation not supported")
    fcntl.flock = refuse
from modlib.runtime.run_folder import RunFolder
with RunFolder(sys.argv[1]).lock():
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

    monkeypatch.setattr(run_folder.fcntl, "flock", refuse)


def lease_of(run: RunFolder, **changes: object) -> Path:
    """Leave a lease as another process would."""
    path = run.path / "lease.json"
    path.write_text(json.dumps({"host": "node7", "pid": 4711, "started": 1.0, "since": 1.0} | changes))
    return path


# ------------------------------------------------------------------------------------------------ names and paths


@pytest.mark.parametrize("name", ["a", "gpt2-0123abcd", "7B", "A.b_c-d", "x" * 64])
def test_names_that_are_fine(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize(
    "name", ["", ".", "..", ".a", "-a", "_a", "a/b", "a\\b", "a b", "a\n", "a;b", "$a", "ä", "x" * 65]
)
def test_names_that_are_refused(name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_name(name)
    assert str(caught.value) == (
        f"name ({name!r}) must be 1 to 64 letters, digits, '.', '_' or '-', the first a letter or digit; "
        "it is a name, not a path: choose the place with --runs_dir"
    )


def test_the_tree_of_a_run(run: RunFolder) -> None:
    assert run.name == "gpt2-0123abcd"
    attempt = run.begin_attempt()
    relative = {
        str(path.relative_to(run.path))
        for path in (
            run.config_path, run.provenance_path, run.metrics_path, run.tensorboard_path, run.checkpoints_path,
            run.run_json_path, attempt.log_path(3), attempt.error_path(3), attempt.stacks_path(3),
        )
    }  # fmt: skip
    assert relative == {
        "config.gin", "provenance.json", "metrics.jsonl", "tb", "checkpoints", "run.json",
        "attempts/0001/logs/rank-3.out", "attempts/0001/logs/rank-3.error.json", "attempts/0001/stacks/rank-3.txt",
    }  # fmt: skip


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError) as caught:
        RunFolder(tmp_path / "file" / "run").create()
    assert str(caught.value) == (
        f"runs_dir ({tmp_path / 'file'}) must be a folder that can be written: Not a directory; "
        "choose another with --runs_dir"
    )
    with pytest.raises(RunFolderError, match="must be a folder that can be written: No such file or directory"):
        RunFolder("/proc/runs/run").create()
    with pytest.raises(RunFolderError, match=r"run folder \(.*gone\) must be a folder that can be written"):
        RunFolder(tmp_path / "gone").lock().__enter__()


def test_creating_it_twice_at_once_is_fine(tmp_path: Path) -> None:
    code = "import sys; from modlib.runtime.run_folder import RunFolder\n"
    code += "for _ in range(20): RunFolder(sys.argv[1]).create()"
    creators = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "run")]) for _ in range(2)]
    assert [creator.wait(DEADLINE_S) for creator in creators] == [0, 0]
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["attempts", "checkpoints"]


# --------------------------------------------------------------------------------------------- run.json, attempts


def test_update_merges_and_survives_a_torn_file(run: RunFolder) -> None:
    assert run.read() == {}
    run.update(status="created", step=1)
    run.update(step=2)
    assert run.read() == {"status": "created", "step": 2}
    for torn in ('{"status": "cre', "", "[1]"):
        run.run_json_path.write_text(torn)
        assert run.read() == {}
    run.update(step=3)
    assert run.read() == {"step": 3}


def test_an_update_that_fails_halfway_leaves_the_old_content(run: RunFolder) -> None:
    run.update(step=1)

    def full(_: str, detail: str) -> None:
        if detail.startswith("rename"):
            raise OSError(28, "No space left on device")

    with faults.installed("fs.operation", full), pytest.raises(OSError, match="No space left"):
        run.update(step=2)
    assert run.read() == {"step": 1}
    assert sorted(path.name for path in run.path.iterdir()) == ["attempts", "checkpoints", "run.json"]


def test_a_reader_never_sees_a_part_of_an_update(run: RunFolder) -> None:
    run.update(step=0, text="x" * 20_000)
    ended = threading.Event()
    seen = []

    def look() -> None:
        while not ended.is_set():
            seen.append(len(run.read().get("text", "")))

    thread = threading.Thread(target=look)
    thread.start()
    for step in range(50):
        run.update(step=step)
    ended.set()
    thread.join()
    assert set(seen) == {20_000}


def test_attempts_count_up_and_are_recorded(run: RunFolder) -> None:
    assert run.num_attempts == 0
    first, second = run.begin_attempt(), run.begin_attempt()
    assert [first.number, second.number] == [1, 2]
    assert [path.name for path in sorted(run.attempts_path.iterdir())] == ["0001", "0002"]
    assert run.current_attempt() == second
    assert first.logs_path.is_dir()
    state = run.read()
    assert (state["status"], state["attempts"], state["pid"]) == ("running", 2, os.getpid())
    assert state["host"] == socket.gethostname()
    assert state["versions"] == versions()
    assert {"python", "modlib", "torch"} <= set(versions())
    second.finish("stopped", 7, 75)
    ending = json.loads((second.path / "exit.json").read_text())
    assert (ending["reason"], ending["step"], ending["exit_code"]) == ("stopped", 7, 75)
    assert ending["time"] == pytest.approx(time.time(), abs=60)
    (run.attempts_path / "notes").mkdir()  # not one of ours
    (run.attempts_path / "10000").mkdir()  # more than four digits
    assert run.begin_attempt().number == 10001


# ------------------------------------------------------------------------------------------------------- the lock


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
    assert (run.path / "lease.json").read_text() == ""


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
    monkeypatch.setattr(run_folder, "LEASE_LASTS_S", 5.0)
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
    monkeypatch.setattr(run_folder, "LEASE_LASTS_S", 0.3)
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
    monkeypatch.setattr(run_folder, "LEASE_RENEWED_S", 0.01)
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
    old = time.time() - run_folder.LEASE_LASTS_S - run_folder.CLOCKS_DIFFER_S - 5
    os.utime(path, (old, old))
    assert run.holder() is None


@pytest.mark.parametrize("torn", ["", "{", "[]", '{"host": "HERE", "pid": "x"}', '{"host": "HERE", "started": []}'])
def test_a_torn_lease_names_no_holder(run: RunFolder, torn: str) -> None:
    (run.path / "lease.json").write_text(torn.replace("HERE", socket.gethostname()))
    assert run.holder() is None


def test_updates_of_several_processes_at_once_all_arrive(run: RunFolder) -> None:
    code = "import sys; from modlib.runtime.run_folder import RunFolder\n"
    code += "for n in range(20): RunFolder(sys.argv[1]).update(**{f'{sys.argv[2]}-{n}': n})"
    writers = [subprocess.Popen([sys.executable, "-c", code, str(run.path), str(number)]) for number in range(3)]
    assert [writer.wait(DEADLINE_S) for writer in writers] == [0, 0, 0]
    assert len(run.read()) == 60


def test_an_attempt_that_was_killed_is_closed_by_the_next(run: RunFolder) -> None:
    first = run.begin_attempt()
    run.update(step=7)
    second = run.begin_attempt()
    ended = json.loads(first.exit_path.read_text())
    assert (ended["reason"], ended["step"], ended["exit_code"]) == ("died", 7, None)
    second.finish("stopped", 9, 75)
    run.begin_attempt()
    assert json.loads(second.exit_path.read_text())["reason"] == "stopped"


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
