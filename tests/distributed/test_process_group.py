"""Joining the world that the environment describes, with real processes that come, and that do not."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from modlib.distributed.process_group import process_group

RANK = """
import sys, torch, torch.distributed as dist
from modlib.distributed.process_group import process_group
from modlib.runtime.errors import ModlibError
try:
    with process_group(timeout_s=float(sys.argv[1])) as world:
        one = torch.full((1,), world.rank + 1.0)
        dist.all_reduce(one)
        two = one.clone()
        dist.all_reduce(two, group=world.control_group)
        print(world.rank, world.local_rank, world.size, world.device, one.item(), two.item())
    assert not dist.is_initialized()
except ModlibError as error:
    print(error)
    sys.exit(error.exit_code)
"""


def start(rank: int, size: int, rendezvous: str, timeout_s: float = 30) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", RANK, str(timeout_s)],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ
        | {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(size),
            "MODLIB_RENDEZVOUS": rendezvous,
            "GLOO_SOCKET_IFNAME": "lo",
        },
    )


def test_two_ranks_meet_compute_and_part(tmp_path: Path) -> None:
    ranks = [start(rank, 2, f"file://{tmp_path}/store") for rank in range(2)]
    texts = [rank.communicate(timeout=60)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0]
    if not torch.cuda.is_available():
        assert texts == ["0 0 2 cpu 3.0 6.0\n", "1 1 2 cpu 3.0 6.0\n"]


def test_ranks_that_do_not_come_are_named(tmp_path: Path) -> None:
    began = time.monotonic()
    ranks = [start(rank, 4, f"file://{tmp_path}/store", timeout_s=4) for rank in (0, 2)]
    texts = [rank.communicate(timeout=60)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [6, 6], texts
    assert "rank 0 of 4 on" in texts[0]
    assert "did not meet the other ranks within 4 s: missing 1, 3; look for why in the logs of this attempt" in texts[0]
    assert "missing 1, 3" in texts[1]
    assert time.monotonic() - began < 50


def test_alone_without_a_rendezvous_whatever_another_launcher_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MODLIB_RENDEZVOUS", raising=False)
    for name, value in {"RANK": "3", "LOCAL_RANK": "3", "WORLD_SIZE": "8", "MASTER_ADDR": "127.0.0.1"}.items():
        monkeypatch.setenv(name, value)
    with process_group() as world:
        assert (world.rank, world.local_rank, world.size, world.control_group) == (0, 0, 1, None)
        assert not torch.distributed.is_initialized()


def test_a_world_of_one_needs_no_group(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MODLIB_RENDEZVOUS", f"file://{tmp_path}/store")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    with process_group() as world:
        assert (world.rank, world.size, world.control_group) == (0, 1, None)
        assert not torch.distributed.is_initialized()
