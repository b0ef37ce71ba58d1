"""Joining the world that the environment describes, with real processes that come, and that do not."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from modlib.distributed.process_group import device_index, process_group
from modlib.runtime.errors import ClusterError
from tests import forked
from tests.distributed.test_rendezvous import free_ports

RANK = """
import sys, torch, torch.distributed as dist
from modlib.distributed.process_group import process_group
from modlib.runtime.errors import ModlibError
try:
    with process_group(timeout_s=30) as world:
        one = torch.full((1,), world.rank + 1.0)
        dist.all_reduce(one)
        two = one.clone()
        dist.all_reduce(two, group=world.control_group)
        print(world.rank, world.local_rank, world.size, world.device, one.item(), two.item())
    assert not dist.is_initialized()
except ModlibError as error:
    print(getattr(error, "hosts", ()), error)
    sys.exit(error.exit_code)
"""


def start(rank: int, size: int, rendezvous: str, **environment: str) -> subprocess.Popen[str]:
    return forked.Popen(
        [sys.executable, "-c", RANK],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ
        | {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(size),
            "MODLIB_RENDEZVOUS": rendezvous,
            "GLOO_SOCKET_IFNAME": "lo",
        }
        | environment,
    )


def test_two_ranks_meet_compute_and_part(tmp_path: Path) -> None:
    ranks = [start(rank, 2, f"file://{tmp_path}/store") for rank in range(2)]
    texts = [rank.communicate(timeout=60)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0]
    if not torch.cuda.is_available():
        assert texts == ["0 0 2 cpu 3.0 6.0\n", "1 1 2 cpu 3.0 6.0\n"]


def test_two_ranks_meet_over_tcp(tmp_path: Path) -> None:
    port = free_ports()
    with socket.create_server(("", port)):  # the port is another's: it accepts, and says nothing
        ranks = [
            start(rank, 2, f"tcp://127.0.0.1:{port}", MODLIB_RENDEZVOUS_TOKEN=str(tmp_path), MODLIB_HOSTS="here,here")
            for rank in range(2)
        ]
        texts = [rank.communicate(timeout=60)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0]
    if not torch.cuda.is_available():
        assert texts == ["0 0 2 cpu 3.0 6.0\n", "1 1 2 cpu 3.0 6.0\n"]


def test_ranks_that_do_not_come_are_named_with_their_hosts(tmp_path: Path) -> None:
    began = time.monotonic()
    ranks = [
        start(
            rank,
            4,
            f"file://{tmp_path}/store",
            MODLIB_MEET_TIMEOUT_S="4",
            MODLIB_HOSTS="node1,node1,node2,node3",
            SLURMD_NODENAME="node1" if rank == 0 else "node2",
        )
        for rank in (0, 2)
    ]
    texts = [rank.communicate(timeout=60)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [6, 6], texts
    assert texts[0] == texts[1] == (
        "('node1', 'node3') rank 1 (host node1) and rank 3 (host node3) did not reach the rendezvous within 4 s; "
        "2 of 4 ranks present (hosts node1, node2); look for why in the logs of this attempt, or leave node1, node3 "
        "out of the next\n"
    )  # fmt: skip
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


def test_one_visible_gpu_per_task_is_the_tasks_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_LOCALID", raising=False)
    monkeypatch.setenv("SLURMD_NODENAME", "node7")
    assert [device_index(local_rank, 4) for local_rank in range(4)] == [0, 1, 2, 3]
    text = "local_rank (3) must be below the number of visible GPUs (1) on node7, since each rank needs its own; lower"
    with pytest.raises(ClusterError, match=re.escape(text)) as caught:
        device_index(3, 1)
    assert caught.value.hosts == ("node7",)
    monkeypatch.setenv("SLURM_LOCALID", "3")
    assert device_index(3, 1) == 0
    assert device_index(3, 4) == 3
    with pytest.raises(ClusterError):
        device_index(3, 2)
