"""A run that hangs ends within its limit, names who was doing what, and leaves the stacks of its ranks."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from tests.launching_command import launch, started, wait_for_step

GIN = """\
import stuck_collator
include 'debug/tiny.gin'
train.collate = @StuckCollator
train.hang_limit_s = {limit}
MICRO_BATCH_SIZE = 2
EVAL_EVERY = 1000
"""
STUCK = '''\
"""A collator that never gives rank {rank} its fourth batch."""

import os
import threading

from modlib.components import component
from modlib.data.batches.collate import LMCollator


@component("collator", "stuck")
class StuckCollator(LMCollator):
    """As LMCollator, for a while."""

    def __call__(self, samples):
        self.calls = getattr(self, "calls", 0) + 1
        if self.calls == 4 and int(os.environ.get("RANK", "0")) == {rank}:
            threading.Event().wait()
        return super().__call__(samples)
'''


def files(folder: Path, rank: int, limit: float) -> list[str]:
    (folder / "stuck_collator.py").write_text(STUCK.format(rank=rank))
    (folder / "hang.gin").write_text(GIN.format(limit=limit))
    return ["--runs_dir", str(folder / "runs"), "--name", "run"]


def test_one_process(tmp_path: Path) -> None:
    flags = files(tmp_path, 0, 3.0)
    done = launch(str(tmp_path / "hang.gin"), ["train.compile=False"], *flags, cwd=tmp_path)
    assert done.returncode == 6, done.stderr
    attempt = tmp_path / "runs" / "run" / "attempts" / "0001"
    assert done.stderr.splitlines()[-1] == (
        f"error: no progress for 3 s: rank 0 was loading the data of step 4. Stacks: {attempt / 'stacks'}. If this may "
        "take so long, raise train.hang_limit_s"
    )
    stacks = (attempt / "stacks" / "rank-0.txt").read_text()
    assert stacks.startswith(f"rank 0 on {os.uname().nodename} was loading the data of step 4 for 3 s\n")
    assert "stuck_collator.py" in stacks
    ending = json.loads((attempt / "exit.json").read_text())
    assert (ending["reason"], ending["exit_code"]) == ("failed", 6)
    assert json.loads((tmp_path / "runs" / "run" / "run.json").read_text())["status"] == "failed"


@pytest.mark.slow
def test_one_rank_of_two_holds_up_the_other(tmp_path: Path) -> None:
    flags = files(tmp_path, 1, 4.0)
    params = ["Local.num_processes=2", "train.compile=False"]
    done = launch(str(tmp_path / "hang.gin"), params, *flags, cwd=tmp_path)
    assert done.returncode == 6, done.stderr
    attempt = tmp_path / "runs" / "run" / "attempts" / "0001"
    host = os.uname().nodename
    said = done.stderr.splitlines()[-1]
    assert f"rank 1 ({host}) was loading the data of step 4" in said
    assert f"rank 0 ({host}) was computing step 4" in said
    assert f"Stacks: {attempt / 'stacks'}." in said
    assert "stuck_collator.py" in (attempt / "stacks" / "rank-1.txt").read_text()
    assert "in update" in (attempt / "stacks" / "rank-0.txt").read_text()


@pytest.mark.slow
def test_a_rank_that_is_frozen_is_named(tmp_path: Path) -> None:
    flags = files(tmp_path, 9, 4.0)
    params = ["Local.num_processes=2", "train.compile=False", "NUM_STEPS=1_000_000", "CHECKPOINT_EVERY=1_000_000"]
    with started(str(tmp_path / "hang.gin"), params, *flags, cwd=tmp_path) as process:
        wait_for_step(tmp_path / "runs" / "run", 3, process)
        os.kill(rank_pid(process.pid, 1), signal.SIGSTOP)
        _, err = process.communicate(timeout=120)
    assert process.returncode == 6, err
    assert "rank 1 (" in err.splitlines()[-1]
    assert "wrote no stacks, as if frozen or gone; rank 0 (" in err.splitlines()[-1]


def rank_pid(launcher: int, rank: int) -> int:
    """The process of a rank but the first, a child of its launcher that writes to its own log."""
    for child in Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split():
        if os.readlink(f"/proc/{child}/fd/1").endswith(f"/rank-{rank}.out"):
            return int(child)
    raise AssertionError(f"rank {rank} is not there")


def test_a_limit_that_is_none(tmp_path: Path) -> None:
    done = launch("debug/tiny.gin", ["train.hang_limit_s=0"], "--runs_dir", str(tmp_path))
    assert done.returncode == 2
    assert "hang_limit_s (0.0) must be above 0; set it to seconds, or to None for no limit" in done.stderr
    assert list(tmp_path.iterdir()) == []
