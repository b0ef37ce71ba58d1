"""Stop signals at any time of a real run: named, answered with what is kept, and with the right exit code."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from modlib.launching.run_state import run_state
from modlib.runtime.kept import what_is_kept
from modlib.runtime.run_folder import RunFolder
from tests.launching_command import started, wait_for_step

TINY = "debug/tiny.gin"
SLOW = """
import time
from modlib.components import component
from modlib.nn.losses import CLMCrossEntropyLoss

@component("loss", "slow_cross_entropy")
class SlowCrossEntropyLoss(CLMCrossEntropyLoss):
    \"\"\"Cross entropy that takes its time.\"\"\"

    def __call__(self, outputs, targets):
        time.sleep(0.7)
        return super().__call__(outputs, targets)
"""
GIN = """
import slow_loss
include 'debug/tiny.gin'
train.loss = @SlowCrossEntropyLoss
train.compile = False
train.subscribers = [@RichProgress, @JSONL]
NUM_STEPS = 100
EVAL_EVERY = 100
CHECKPOINT_EVERY = 2
"""


@contextmanager
def slow_run(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A run of steps that take a second or so, in its own process group."""
    (folder / "slow_loss.py").write_text(SLOW)
    (folder / "slow.gin").write_text(GIN)
    with started("./slow.gin", [], "--name", "run", cwd=folder) as process:
        yield process


@pytest.mark.slow
def test_ctrl_c_waits_for_the_step_and_twice_says_what_is_lost(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "runs" / "run")
    with slow_run(tmp_path) as process:
        wait_for_step(run.path, 3, process)
        process.send_signal(signal.SIGINT)
        time.sleep(0.1)  # signals of one number that come at once are one
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    record = run.read()
    saved, lost = record["step"], record["lost_steps"]
    assert saved in (2, 3, 4), "a busy machine may have saved, or been a step further, between the two signals"
    kept = what_is_kept(saved, lost)
    assert f"interrupted twice: stopping now, without saving; {kept} (exit code 130)" in err
    assert (record["status"], record["exit_code"]) == ("stopped", 130)
    assert saved + lost >= 3
    assert run.attempt(1).ending()["reason"] == "stopped"
    seen = run_state(run)
    assert (seen.state, seen.why, seen.lost_steps) == ("stopped", f"{kept}; `modlib resume run` continues", lost)
    with slow_run(tmp_path) as process:
        wait_for_step(run.path, 4, process)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 75, err
    (line,) = [line for line in err.splitlines() if "SIGINT" in line and "warning" in line]
    assert line.startswith("warning: SIGINT: saving and stopping after step ")
    assert line.endswith("s); Ctrl-C again stops now")
    assert "(a step takes " in line
    after = int(line.split("after step ")[1].split(" ")[0])
    assert run.read()["step"] == after, "it did not stop at the step that it named"
    assert run.read()["lost_steps"] == 0


@pytest.mark.parametrize(
    ("number", "moment_s"),
    [
        (signal.SIGTERM, 0.0),
        pytest.param(signal.SIGHUP, 0.05, marks=pytest.mark.slow),
        pytest.param(signal.SIGUSR2, 0.1, marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, 0.02, marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, 0.2, marks=pytest.mark.slow),
    ],
)
def test_a_signal_before_the_first_step_is_named_and_costs_nothing(
    tmp_path: Path, number: signal.Signals, moment_s: float
) -> None:
    with started(TINY, ["NUM_STEPS=4000"], "--runs_dir", str(tmp_path), "--name", "run") as process:
        wait_for_handlers(process.pid)
        time.sleep(moment_s)
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
    begun = (tmp_path / "run" / "metrics.jsonl").exists()  # on a fast machine a late signal comes behind the first step
    assert process.returncode == (130 if number == signal.SIGINT and not begun else 75), err
    assert any(number.name in line for line in err.splitlines()), err
    assert "Traceback" not in err


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2, signal.SIGINT, signal.SIGHUP])
def test_a_resumed_run_of_two_that_is_stopped_while_it_starts_keeps_its_steps(
    tmp_path: Path, number: signal.Signals
) -> None:
    params = ["Local.num_processes=2", "MICRO_BATCH_SIZE=2", "NUM_STEPS=4000", "EVAL_EVERY=4000"]
    words = ("--runs_dir", str(tmp_path), "--name", "run")
    with started(TINY, params, *words) as process:
        wait_for_step(tmp_path / "run", 3, process)
        process.send_signal(number)
        _, err = process.communicate(timeout=90)
    assert process.returncode == 75, err
    saved = json.loads((tmp_path / "run" / "run.json").read_text())["step"]
    with started(TINY, params, *words) as process:
        deadline = time.monotonic() + 60
        while not (tmp_path / "run" / "attempts" / "0002").exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(number)
        _, err = process.communicate(timeout=90)
    begun = json.loads((tmp_path / "run" / "run.json").read_text())["step"] > saved  # the signal came behind a step
    assert process.returncode == (130 if number == signal.SIGINT and not begun else 75), err
    if begun:
        assert f"{number.name}: saving and stopping" in err
    else:
        (line,) = [line for line in err.splitlines() if f"{number.name}: stopped before training began; " in line]
        assert line.endswith((f"step {saved} is saved; the same command continues", "nothing was changed")), line
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (record["status"], record["step"], record["lost_steps"]) == ("stopped", saved, 0)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT])
def test_a_signal_to_the_whole_group_spares_loader_workers(tmp_path: Path, number: signal.Signals) -> None:
    params = ["DataLoader.num_workers=2", "NUM_STEPS=4000", "EVAL_EVERY=4000"]
    with started(TINY, params, "--runs_dir", str(tmp_path), "--name", "run") as process:
        wait_for_step(tmp_path / "run", 6, process)
        os.killpg(process.pid, number)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 75, err
    assert "Traceback" not in err


def wait_for_handlers(pid: int) -> None:
    """Until a process handles SIGTERM itself: the interpreter has to start first."""
    deadline = time.monotonic() + 30
    while True:
        status = Path(f"/proc/{pid}/status").read_text()
        caught = int(next(line for line in status.splitlines() if line.startswith("SigCgt:")).split()[1], 16)
        if caught >> (signal.SIGTERM - 1) & 1:
            return
        assert time.monotonic() < deadline
        time.sleep(0.005)
