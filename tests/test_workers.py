"""run_ranks: results, exceptions, deaths, hangs, and nothing left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
import torch
import torch.distributed as dist

from modlib.runtime.errors import ConfigError
from tests.workers import ROOT, RankFailed, RanksHung, run_ranks


def total(values: list[float], *, scale: float) -> tuple[int, float]:
    tensor = torch.tensor(values[dist.get_rank()]) * scale
    dist.all_reduce(tensor)
    return dist.get_rank(), tensor.item()


def fail_on(rank: int) -> None:
    if dist.get_rank() == rank:
        raise ConfigError(["dim (5) is odd", "second"])
    dist.barrier()


def wait_for_ever(rank: int) -> None:
    if dist.get_rank() == rank:
        signal.pause()
    dist.barrier()


def die(rank: int) -> None:
    if dist.get_rank() == rank:
        os.kill(os.getpid(), signal.SIGKILL)
    dist.barrier()


def pids() -> int:
    return os.getpid()


def test_results_come_back_by_rank_from_the_same_processes():
    assert run_ranks(2, total, [1.0, 2.0], scale=10.0) == [(0, 30.0), (1, 30.0)]
    assert run_ranks(2, pids) == run_ranks(2, pids)


def test_an_exception_is_raised_here_with_the_ranks_traceback():
    with pytest.raises(ConfigError, match=r"dim \(5\) is odd") as caught:
        run_ranks(2, fail_on, 1)
    assert caught.value.problems == ["dim (5) is odd", "second"]
    assert "on rank 1 of" in caught.value.__notes__[0]
    assert "in fail_on" in caught.value.__notes__[0]
    assert run_ranks(2, total, [1.0, 2.0], scale=1.0)[0] == (0, 3.0)


def test_a_hang_fails_with_the_stacks_and_the_next_call_works():
    for timeout_s in (2, 15, 60):  # on a busy machine it takes longer until both ranks are where they hang
        before = run_ranks(2, pids)
        with pytest.raises(RanksHung, match=f"did not finish within {timeout_s} s") as caught:
            run_ranks(2, wait_for_ever, 0, timeout_s=timeout_s)
        assert not any(psutil.pid_exists(pid) for pid in before)
        if "in barrier" in str(caught.value):
            break
    assert "in wait_for_ever" in str(caught.value)
    assert "in barrier" in str(caught.value)
    assert run_ranks(2, total, [1.0, 2.0], scale=1.0)[1] == (1, 3.0)


def test_a_dead_rank_is_named():
    with pytest.raises(RankFailed, match="rank 0 died with exit code -9"):
        run_ranks(2, die, 0)


def test_sigkill_of_the_session_leaves_nothing():
    """Neither the ranks nor the process that they were forked from."""
    script = (
        "import time; from tests.workers import *; run_ranks(1, os.getpid)\n"
        "print(open(f'/proc/self/task/{os.getpid()}/children').read(), flush=True); time.sleep(60)"
    )
    session = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert session.stdout is not None
        children = list(map(int, session.stdout.readline().split()))
    finally:
        session.kill()
        session.wait()
    assert len(children) == 2
    deadline = time.monotonic() + 10
    while any(map(psutil.pid_exists, children)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(psutil.pid_exists, children))
