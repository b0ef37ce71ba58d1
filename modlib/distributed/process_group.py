"""This process's place among the ranks, from the environment that a launcher set."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous as rendezvous_at

from modlib.runtime.errors import HangError, ModlibError


@dataclass(frozen=True)
class World:
    """This rank's place.

    Args:
        rank: 0 to size - 1, over all nodes.
        local_rank: The same on this node.
        size: Number of ranks.
        device: Where this rank computes.
        control_group: A gloo group of all ranks for what must not touch the device: votes and checkpoints. None in a
            world of one.
    """

    rank: int
    local_rank: int
    size: int
    device: torch.device
    control_group: dist.ProcessGroup | None = None


@contextmanager
def process_group(timeout_s: float = 600.0) -> Iterator[World]:
    """Join the ranks that the environment names; leave at the end. A world of one needs no group.

    After an error this process stays joined until it ends, so that it can report before the other ranks notice.

    Reads RANK, LOCAL_RANK, WORLD_SIZE and MODLIB_RENDEZVOUS (a URL such as file:///... or tcp://...), without which
    this process is alone.

    Args:
        timeout_s: How long any collective, and the arrival of all ranks, may take.

    Raises:
        HangError: Not all ranks arrived in time.
        ModlibError: There are fewer GPUs than ranks on this machine.
    """
    rendezvous = os.environ.get("MODLIB_RENDEZVOUS")
    if rendezvous is None:  # a RANK that some other launcher left in the shell is none of ours
        yield World(0, 0, 1, _device(0))
        return
    rank, size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    local_rank = int(os.environ.get("LOCAL_RANK", rank))
    device = _device(local_rank)
    if size == 1:
        yield World(0, 0, 1, device)
        return
    timeout = timedelta(seconds=timeout_s)
    try:
        store, _, _ = next(rendezvous_at(rendezvous, rank=rank, world_size=size, timeout=timeout))
        _meet(store, rank, size, timeout_s)
        dist.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            store=dist.PrefixStore("group", store),
            rank=rank,
            world_size=size,
            timeout=timeout,
        )
        control = dist.new_group(backend="gloo", timeout=timeout)
    except (RuntimeError, ValueError) as error:
        if isinstance(error, HangError):
            raise
        raise HangError(
            f"rank {rank} of {size} did not meet the other ranks within {timeout_s:g} s ({error}); "
            "look for one that failed before in the logs of this attempt"
        ) from error
    yield World(rank, local_rank, size, device, control)
    dist.barrier(control)  # leave together: rank 0 may be last, and a launcher may end the others' peers
    # Not after an error: the others would learn of it, fail too, and might be on record before this rank's own error.
    # They learn of it when this process ends.
    dist.destroy_process_group()


def _meet(store: dist.Store, rank: int, size: int, timeout_s: float) -> None:
    """Wait until every rank is there; who is missing can be named now, and no more inside a collective."""
    store.set(f"arrived/{rank}", "")
    deadline = time.monotonic() + timeout_s
    missing = []
    for other in range(size):
        try:
            store.wait([f"arrived/{other}"], timedelta(seconds=max(0.01, deadline - time.monotonic())))
        except RuntimeError:
            missing.append(other)
    if missing:
        raise HangError(
            f"rank {rank} of {size} on {socket.gethostname()} did not meet the other ranks within {timeout_s:g} s: "
            f"missing {', '.join(map(str, missing))}; look for why in the logs of this attempt"
        )


def _device(local_rank: int) -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    if local_rank >= torch.cuda.device_count():
        raise ModlibError(
            f"local_rank ({local_rank}) must be below the number of visible GPUs ({torch.cuda.device_count()}), "
            "since each rank needs its own; lower the number of processes"
        )
    device = torch.device("cuda", local_rank)
    torch.cuda.set_device(device)
    return device
