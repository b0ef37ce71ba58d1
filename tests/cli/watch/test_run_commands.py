"""status, ls, logs, follow, cancel, resume and queue: with real runs on this machine, and with what is left of runs."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from modlib.cli.watch.resume import finished_step, launch_command, require_resumable
from modlib.runtime.errors import RunFolderError
from modlib.runtime.run_folder import RunFolder
from tests import forked
from tests.cli.commands import modlib
from tests.launching_command import ROOT, launch, metrics, started, wait_for_step

TINY = "debug/tiny.gin"
SMALL = ("MICRO_BATCH_SIZE=1", "train.sample=None", "train.evaluators=[]", "train.subscribers=[@JSONL]")
# long enough to be looked at; it is stopped in the end
LONG = (*SMALL, "NUM_STEPS=100000", "LOG_EVERY=2", "CHECKPOINT_EVERY=1000000")
JSON_NAMES = {
    "name", "path", "state", "why", "step", "num_steps", "tokens", "eta_s", "loss", "val_loss", "host", "pid",
    "world_size", "attempts", "executor", "job_ids", "job", "exit_code", "heartbeat_age_s", "quiet_s", "no_news",
    "checkpoint_step", "lost_steps", "last_activity", "wandb_url",
}  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A runs folder with a run of four steps that is finished."""
    folder = tmp_path_factory.mktemp("finished")
    params = ("NUM_STEPS=4", "CHECKPOINT_EVERY=2", "EVAL_EVERY=4", "train.sample=None")
    done = launch(TINY, params, "--runs_dir", str(folder), "--name", "done")
    assert done.returncode == 0, done.stderr
    return folder


@contextmanager
def command(*words: str | Path) -> Iterator[subprocess.Popen[str]]:
    """A command in a process of its own, with its output in a pipe."""
    code = "from modlib.cli.main import main; main()"
    process = forked.Popen(
        [sys.executable, "-c", code, *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def one(*words: str | Path) -> dict[str, Any]:
    """What `status --json` says of one run."""
    (found,) = json.loads(modlib("status", *words, "--json").stdout)
    return found


@pytest.mark.slow
def test_a_run_that_is_cancelled_resumed_and_killed(tmp_path: Path) -> None:
    """One run through its states, watched."""
    folder = ("--runs_dir", tmp_path)
    run = RunFolder(tmp_path / "long")
    with started(TINY, LONG, "--runs_dir", str(tmp_path), "--name", "long") as process:
        wait_for_step(run.path, 6, process)
        found = one("long", *folder)
        assert set(found) == JSON_NAMES
        assert (found["state"], found["why"], found["host"]) == ("running", "", socket.gethostname())
        assert (found["pid"], found["attempts"], found["executor"]) == (process.pid, 1, "local")
        assert found["step"] >= 6
        assert found["num_steps"] == 100000
        assert found["tokens"] == found["step"] * 32
        assert found["eta_s"] > 0
        assert 5 < found["loss"] < 12
        assert found["quiet_s"] < 60
        with pytest.raises(RunFolderError) as caught:
            require_resumable(run)
        assert str(caught.value) == (
            f"run (long) must not run or wait to be resumed, but is running (process {process.pid} on "
            f"{socket.gethostname()}); watch it with `modlib follow long`, or stop it with `modlib cancel long`"
        )
        with command("follow", "lo", *folder) as follow:
            assert follow.stdout is not None
            assert follow.stdout.readline() == "long: running\n"
            # on a busy machine the log has a notice before it, that no peak could be measured
            assert any("train step=" in follow.stdout.readline() for _ in range(20))
            cancelled = modlib("cancel", "long", *folder)
            assert f"long: process {process.pid} was told to save and stop\n" in cancelled.stderr
            assert process.wait(timeout=60) == 75
            rest, _ = follow.communicate(timeout=60)
            assert follow.returncode == 75, rest
    last = metrics(run.path)[-1]["step"]
    assert f"train step={last}/100000 loss=" in rest
    assert "is saved; `modlib resume long` continues" in rest
    found = one("long", *folder)
    assert (found["state"], found["exit_code"], found["eta_s"], found["pid"]) == ("stopped", 75, None, None)
    assert found["checkpoint_step"] == found["step"] >= last
    assert f"long: is stopped; step {found['step']} is saved" in cancelled.stderr

    with command("resume", "long", *folder) as resumed:  # becomes the launcher itself
        wait_for_step(run.path, found["step"] + 3, resumed)
        again = one("long", *folder)
        assert (again["state"], again["attempts"], again["pid"]) == ("running", 2, resumed.pid)
        resumed.kill()
        resumed.wait()
        died = one("long", *folder)
        assert died["state"] == "died"
        assert died["why"].startswith(f"process {resumed.pid} on {socket.gethostname()} is gone and left no word; step")
    assert modlib("ls", *folder).stdout.splitlines()[1].split("\t")[:2] == ["long", "died"]
    said = modlib("follow", "long", *folder, code=1).output
    assert "long: died" in said


def test_cancel_now_kills(tmp_path: Path) -> None:
    """A process that holds the run and does not stop when it is told to."""
    code = (
        "import signal, sys, time\nfrom modlib.runtime.run_folder import RunFolder\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\nrun = RunFolder(sys.argv[1])\nrun.create()\n"
        "with run.lock():\n    run.begin_attempt()\n    print('held', flush=True)\n    time.sleep(300)"
    )
    path = tmp_path / "one"
    process = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        assert one("one", "--runs_dir", tmp_path)["state"] == "running"
        killed = modlib("cancel", "--now", "one", "--runs_dir", tmp_path)
        assert process.wait(timeout=30) == -signal.SIGKILL
    finally:
        process.kill()
        process.communicate()
    assert killed.stderr == "one: is cancelled (killed); nothing was saved\n"
    assert one("one", "--runs_dir", tmp_path)["state"] == "cancelled"
    assert "one: is cancelled already" in modlib("cancel", "one", "--runs_dir", tmp_path).stderr


def test_follow_survives_a_change_of_attempts(tmp_path: Path) -> None:
    """The lines of a run as another attempt writes them, which first drops those that it will do again."""
    run = RunFolder(tmp_path / "one")
    run.create()
    run.update(name="one", status="created", num_steps=8)

    def log(*steps: int) -> None:
        with open(run.metrics_path, "a") as file:
            for step in steps:
                values = {"step": step, "tokens": step, "time": time.time(), "attempt": run.num_attempts}
                file.write(json.dumps(values | {"train/loss": 5.0 + step}) + "\n")

    with command("follow", "one", "--runs_dir", tmp_path) as follow:
        assert follow.stdout is not None
        # whether it looks between the lock and the attempt is a matter of luck: that line may come or not
        lines = (line for line in iter(follow.stdout.readline, "") if "prepares it" not in line)
        assert next(lines) == "one: created, never started\n"
        with run.lock():
            attempt = run.begin_attempt()
            log(1, 2, 3, 4)
            attempt.log_path(0).write_text("hello\nand a torn li")
            assert next(lines) == "attempt 1\n"
            seen = [next(lines) for _ in range(6)]
            expected = [f"train step={step}/8 loss={5.0 + step:.4f}\n" for step in (1, 2, 3, 4)]
            assert [line for line in seen if line.startswith("train")] == expected
            assert sorted(set(seen) - set(expected)) == ["hello\n", "one: running\n"]
            attempt = run.begin_attempt()
            text = run.metrics_path.read_text().splitlines(keepends=True)
            run.metrics_path.write_text("".join(text[:2]))
            log(3, 4, 5, 6, 7, 8)
            attempt.log_path(0).write_text("again\n")
            run.update(status="finished", step=8)
        rest = follow.communicate(timeout=60)[0]
        assert follow.returncode == 0, rest
    assert "attempt 2\n" in rest
    assert rest.count("again\n") == 1
    for step in range(3, 9):
        assert rest.split("attempt 2\n")[1].count(f"train step={step}/8 ") == 1, rest


def test_finished(finished: Path) -> None:
    found = one("done", "--runs_dir", finished)
    assert (found["state"], found["why"], found["step"], found["num_steps"]) == ("finished", "", 4, 4)
    assert (found["exit_code"], found["checkpoint_step"], found["tokens"]) == (0, 4, 512)
    assert found["val_loss"] == pytest.approx(metrics(finished / "done")[-1]["val/validation/loss"])
    text = modlib("status", "do", "--runs_dir", finished).stdout
    assert text.startswith("done  finished\n  step        4 of 4 (100.0%), 512 tokens\n")
    assert f"  loss        {found['loss']:.4f}, validation {found['val_loss']:.4f}\n" in text
    assert "no run in" in modlib("status", "--runs_dir", finished).stderr
    assert "done: is finished already" in modlib("cancel", "done", "--runs_dir", finished).stderr
    assert "done: finished\n" in modlib("follow", "done", "--runs_dir", finished).stdout


ODD = {
    "deep": ("[" * 200_000, "run.json must be JSON of at most 100 levels of objects and lists; it has more"),
    "object": ("[]", "run.json must have an object, and has []"),
    "text": ('{"status": "finished", "step": "12"}', "run.json must have a whole number at step, and has '12'"),
    "large": ('{"step": 1' + "0" * 400 + "}", "run.json must have a whole number of at most 64 bits at step, and has"),
    "jobs": ('{"slurm": {"job_ids": 3}}', "run.json must have a list at slurm.job_ids, and has 3"),
    "torn": ('{"status": "fin', "run.json must be JSON: unterminated string starting at (line 1, column 12)"),
    "folder": (None, "run.json must be a regular file; move away what is in its place"),
    "half": ('{"host": "\\ud800", "status": "stopped"}', ""),
}


def test_an_odd_run_json_hides_no_other_run(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    for name, (text, _) in ODD.items():
        run = RunFolder(runs / name)
        run.create()
        run.run_json_path.mkdir() if text is None else run.run_json_path.write_text(text)
        (run.path / "lease.json").write_text("[" * 100_000)
        run.metrics_path.write_text('{"step": 1e999, "time": "x"}\n{"step": 3, "train/loss": []}\n')
    good = RunFolder(runs / "sound")
    good.create()
    good.update(status="stopped", step=4, num_steps=8)
    rows = [line.split("\t") for line in modlib("ls", "--runs_dir", runs).stdout.splitlines()]
    assert {row[0] for row in rows[1:]} == {*ODD, "sound"}
    assert next(row[1:3] for row in rows if row[0] == "sound") == ["stopped", "4/8"]
    for row in rows[1:]:
        assert row[-1].startswith(ODD.get(row[0], ("", ""))[1]), row
    assert len(json.loads(modlib("ls", "--runs_dir", runs, "--json").stdout)) == len(rows) - 1
    modlib("status", runs / "deep")


def test_ls_the_newest_first(finished: Path, tmp_path: Path) -> None:
    (tmp_path / "done").symlink_to(finished / "done")
    for age_s, name in ((300, "old"), (50, "sweep/point-1"), (100, "empty")):
        run = RunFolder(tmp_path / name)
        run.create()
        if name != "empty":
            run.update(name=run.name, status="created")
        for path in (run.path, run.run_json_path):
            if path.exists():
                os.utime(path, (time.time() + 10_000 - age_s,) * 2)
    head, *rows = [line.split("\t") for line in modlib("ls", "--runs_dir", tmp_path).stdout.splitlines()]
    assert head == ["run", "state", "step", "ETA", "loss", "val loss", "host", "age", "why"]
    assert [row[:3] for row in rows] == [
        ["sweep/point-1", "created", ""],
        ["empty", "created", ""],
        ["old", "created", ""],
        ["done", "finished", "4/4"],
    ]
    assert rows[1][-1] == "run.json is missing"
    names = [row.split("\t")[0] for row in modlib("ls", "*o*e", "--runs_dir", tmp_path).stdout.splitlines()]
    assert names == ["run", "done"]
    listed = json.loads(modlib("ls", "POINT", "--runs_dir", tmp_path, "--json").stdout)
    assert [(each["name"], set(each)) for each in listed] == [("sweep/point-1", JSON_NAMES)]
    assert "no runs in" in modlib("ls", "nothing", "--runs_dir", tmp_path, code=1).stderr
    assert json.loads(modlib("ls", "--runs_dir", tmp_path / "nowhere", "--json").stdout) == []
    assert "no runs in" in modlib("ls", "--runs_dir", tmp_path / "nowhere").stderr


def test_an_empty_log_is_answered_with_the_metrics(finished: Path) -> None:
    """A run on this machine writes its numbers into metrics.jsonl alone, and its log is where they are looked for."""
    (finished / "done" / "attempts" / "0001" / "logs" / "rank-0.out").write_text("")
    done = modlib("logs", "done", "--lines", "2", "--runs_dir", finished)
    first, last = done.stdout.splitlines()
    assert first.startswith("train step=4/4 loss=")
    assert last.startswith("eval step=4/4 name=validation loss=")
    assert f"the last of {finished}/done/metrics.jsonl; `modlib follow done` shows them as they come:\n" in done.stderr


def test_resume_of_a_finished_run_answers_at_once(finished: Path) -> None:
    """From its small files: nothing is launched, which would be another process in place of this one."""
    done = modlib("resume", "done", "--runs_dir", finished)
    assert done.stderr == f"run done is finished: 4 steps are done and saved in {finished}/done\n"


@pytest.mark.parametrize("what", ["checkpoint", "config", "step"])
def test_resume_of_a_run_that_may_not_be_finished_lets_training_look(what: str, finished: Path, tmp_path: Path) -> None:
    run = RunFolder(shutil.copytree(finished / "done", tmp_path / "done"))
    assert finished_step(run) == 4
    if what == "checkpoint":
        shutil.rmtree(run.checkpoints_path / "step-00000004")
    elif what == "config":
        run.config_path.write_text(run.config_path.read_text() + "\n")
    else:
        run.update(step=3)
    assert finished_step(run) is None


def test_logs(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "one")
    run.create()
    folder = ("--runs_dir", tmp_path)
    assert "must have been started to have logs" in modlib("logs", "one", *folder, code=4).stderr
    for number in (1, 2):
        attempt = run.begin_attempt()
        for rank in (0, 1, 10):
            lines = [f"attempt {number} rank {rank} line {line}\n" for line in range(30_000 if rank == 1 else 3)]
            attempt.log_path(rank).write_text("".join(lines))
    assert modlib("logs", "one", *folder).stdout == "".join(f"attempt 2 rank 0 line {line}\n" for line in range(3))
    assert modlib("logs", "one", "--attempt", "1", "--lines", "1", *folder).stdout == "attempt 1 rank 0 line 2\n"
    long = modlib("logs", "one", "--rank", "1", "--lines", "20000", *folder).stdout.splitlines()
    assert (len(long), long[0]) == (20000, "attempt 2 rank 1 line 10000")
    assert len(modlib("logs", "one", "--rank", "1", "--lines", "0", *folder).stdout.splitlines()) == 30_000
    said = modlib("logs", "one", "--rank", "2", *folder, code=4).stderr
    assert "--rank (2) must be one with a log in" in said
    assert "those of 0, 1, 10 are there" in said
    assert (
        "--attempt (3) must be one of one's, 1 to 2" in modlib("logs", "one", "--attempt", "3", *folder, code=4).stderr
    )
    assert "--lines (-1) must be at least 0" in modlib("logs", "one", "--lines", "-1", *folder, code=2).stderr


def test_cancel_of_a_run_elsewhere(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "one")
    run.create()
    run.begin_attempt()
    (run.path / "lease.json").write_text(json.dumps({"host": "node7", "pid": 4711, "started": 1.0, "since": 1.0}))
    said = modlib("cancel", "one", "--runs_dir", tmp_path, code=1).stderr
    assert said == f"one: runs as process 4711 on node7; do this there: modlib cancel {run.path}\n"
    assert run.read()["status"] == "running"


def test_cancel_of_what_never_started(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "one")
    run.create()
    run.update(status="created")
    assert "was not started; marked as cancelled" in modlib("cancel", "one", "--runs_dir", tmp_path).stderr
    assert run.read()["status"] == "cancelled"


def test_without_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    run = RunFolder(tmp_path / "one")
    run.create()
    run.update(status="queued", executor="slurm", slurm={"job_ids": ["12"]})
    folder = ("--runs_dir", tmp_path)
    assert modlib("queue", *folder, code=1).stderr == "SLURM is not installed here; `modlib ls` lists the runs\n"
    for words in (("ls",), ("status", "one")):
        done = modlib(*words, *folder)
        assert "job 12 was submitted; SLURM does not answer here" in done.stdout
        assert "SLURM does not answer here: what is said of its jobs is from the run folders alone" in done.stderr
    said = modlib("cancel", "one", *folder, code=1).stderr
    assert said == "one: has jobs, and SLURM does not answer here; where it does: scancel 12\n"
    assert run.read()["status"] == "queued"


def test_resume_needs_a_configuration(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "one")
    run.create()
    said = modlib("resume", "one", "--runs_dir", tmp_path, code=4).stderr
    assert f"run ({run.path}) must have a config.gin to be resumed" in said


def test_resume_names_the_executor_of_a_run_of_the_cluster(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "one")
    run.create()
    run.config_path.write_text("")
    words = [sys.executable, str(ROOT / "launch.py"), "--gin_file", str(run.config_path), "--name", "one"]
    words += ["--runs_dir", str(tmp_path)]
    assert launch_command(run) == words
    run.update(executor="slurm", status="stopped")
    assert launch_command(run) == [*words, "--executor", "slurm"]


@pytest.mark.slurm
def test_queue_and_cancel_of_a_job(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "runs" / "held")
    run.create()
    script = run.path / "job.sh"
    script.write_text("#!/bin/sh\nsleep 60\n")
    words = ["sbatch", "--parsable", "--hold", "--ntasks=1", f"--output={tmp_path}/out", str(script)]
    job = subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()
    folder = ("--runs_dir", tmp_path / "runs")
    try:
        run.update(status="queued", executor="slurm", slurm={"job_ids": [job]})
        rows = [line.split("\t") for line in modlib("queue", *folder).stdout.splitlines()]
        (row,) = [row for row in rows if row[0] == job]
        assert row[1:3] == ["held", "PENDING"]
        assert row[-1] == "held by its user: scontrol release starts it (JobHeldUser)"
        (record,) = [each for each in json.loads(modlib("queue", *folder, "--json").stdout) if each["job_id"] == job]
        assert (record["run"], record["run_path"], record["reason"]) == ("held", str(run.path), "JobHeldUser")
        found = one("held", *folder)
        assert (found["state"], found["job"]["state"]) == ("queued", "PENDING")
        with pytest.raises(RunFolderError, match=r"must have a config.gin"):
            require_resumable(run)
        run.config_path.write_text("")
        with pytest.raises(RunFolderError, match=f"must not run or wait to be resumed, but is queued; job {job}: held"):
            require_resumable(run)
        assert modlib("cancel", "held", *folder).stderr == f"held: cancelled job {job}\n"
        assert one("held", *folder)["state"] == "cancelled"
    finally:
        subprocess.run(["scancel", job], capture_output=True, check=False)
