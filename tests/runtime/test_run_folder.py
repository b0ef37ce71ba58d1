"""The run folder: names, identity, attempts, and one trainer at a time between real processes."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from modlib.runtime import faults
from modlib.runtime.errors import ConfigError, RunFolderError
from modlib.runtime.run_folder import RunFolder, check_name, versions

DEADLINE_S = 30.0


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    folder = RunFolder(tmp_path / "runs" / "gpt2-0123abcd")
    folder.create()
    return folder


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


def test_a_name_that_is_a_secret_is_refused_and_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_CREDENTIALS", "canary-value")
    with pytest.raises(ConfigError) as caught:
        check_name("run-canary-value")
    assert str(caught.value) == (
        "name (run-***) must not hold the value of the environment variable MY_CREDENTIALS, which is a secret: it is "
        "written everywhere; choose another --name"
    )


def test_no_record_holds_a_secret(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_CREDENTIALS", "canary-value")
    run.create()
    run.update(sample="it is canary-value", slurm={"job_ids": ["1"], "api_key": "abc"}, step=3)
    assert run.read() == {"sample": "it is ***", "slurm": {"job_ids": ["1"], "api_key": "***"}, "step": 3}
    attempt = run.begin_attempt()
    attempt.finish("died of canary-value", 3, 1)
    assert attempt.ending()["reason"] == "died of ***"


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


def test_what_killed_processes_left_half_written_is_removed_by_the_next_attempt(run: RunFolder) -> None:
    killed = (
        "import os, sys; from modlib.runtime import faults; from modlib.runtime.run_folder import RunFolder\n"
        "run = RunFolder(sys.argv[1])\n"
        "end = lambda _, detail: os._exit(0) if detail.startswith('rename') else None\n"
        "with faults.installed('fs.operation', end):\n"
        "    run.update(step=1) if sys.argv[2] == 'update' else run.create()"
    )
    for what in ("update", "create"):
        subprocess.run([sys.executable, "-c", killed, str(run.path), what], check=True, timeout=DEADLINE_S)
    (run.path / ".write-test-17").write_text("")
    (run.path / ".notes").write_text("mine")
    assert len(list(run.path.glob(".*"))) == 4, "nothing was left behind"
    with run.lock():
        run.begin_attempt()
    assert [path.name for path in run.path.glob(".*")] == [".notes"]


def test_nothing_is_written_where_a_pinned_folder_was(run: RunFolder) -> None:
    run.pin()
    moved = RunFolder(run.path.rename(run.path.with_name("moved")))
    for _ in range(2):
        with pytest.raises(RunFolderError) as caught:
            run.update(step=1)
        assert str(caught.value) == (
            f"run folder ({run.path}) must stay in its place while a run trains, but was moved, removed or replaced; "
            "nothing more is written there"
        )
        assert list(run.path.iterdir() if run.path.exists() else ()) == []
        run.path.mkdir(exist_ok=True)  # another folder there is no better
    assert moved.read() == {}
    run.path.rmdir()
    moved.path.rename(run.path)
    run.update(step=1)
    assert run.read() == {"step": 1}
