"""This process's place among the ranks, from the environment that a launcher set."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

from modlib.distributed.meeting import Meeting, meet, planned_hosts, this_host
from modlib.distributed.rendezvous import open_store
from modlib.runtime.errors import ClusterError, HangError, ModlibError

MEET_TIMEOUT_S = 600.0
COLLECTIVE_TIMEOUT_S = 600.0


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
        meeting: Where the ranks met, for texts between them that need no group. None in a world of one.
    """

    rank: int
    local_rank: int
    size: int
    device: torch.device
    control_group: dist.ProcessGroup | None = None
    meeting: Meeting | None = None


@contextmanager
def process_group(timeout_s: float = COLLECTIVE_TIMEOUT_S, meet_timeout_s: float | None = None) -> Iterator[World]:
    """Join the ranks that the environment names; leave at the end. A world of one needs no group.

    After an error this process stays joined until it ends, so that it can report before the other ranks notice.

    Reads RANK, LOCAL_RANK, WORLD_SIZE and MODLIB_RENDEZVOUS (a URL such as file:///... or tcp://host:port), without
    which this process is alone; MODLIB_RENDEZVOUS_TOKEN, which tells this attempt from every other at the same place;
    and MODLIB_HOSTS, the planned host of each rank (`node1,node1,node2,node2`), so that a missing one can be named.

    Args:
        timeout_s: How long any collective may take.
        meet_timeout_s: How long the arrival of all ranks may take. None: MODLIB_MEET_TIMEOUT_S, or 600.

    Raises:
        HangError: Not all ranks arrived in time; it has the missing ones' hosts.
        ClusterError: This host, or another, lacks the devices.
        ModlibError: The environment contradicts itself.
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
    if meet_timeout_s is None:
        meet_timeout_s = float(os.environ.get("MODLIB_MEET_TIMEOUT_S", MEET_TIMEOUT_S))
    timeout = timedelta(seconds=timeout_s)
    try:
        planned, token = planned_hosts(size), os.environ.get("MODLIB_RENDEZVOUS_TOKEN", "")
        with open_store(rendezvous, rank, size, meet_timeout_s, token, planned[0]) as store:
            meeting = meet(store, rank, planned, device.type, meet_timeout_s)
        store.set_timeout(timeout)
        dist.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            store=dist.PrefixStore("group", store),
            rank=rank,
            world_size=size,
            timeout=timeout,
        )
        control = dist.new_group(backend="gloo", timeout=timeout)
    except (RuntimeError, ValueError) as error:
        if isinstance(error, ModlibError):
            raise
        raise HangError(
            f"rank {rank} of {size} on {this_host()} did not join the other ranks ({error}); "
            "look for one that failed before in the logs of this attempt"
        ) from error
    yield World(rank, local_rank, size, device, control, meeting)
    # Leave together: rank 0 may be last, and a launcher may end the others' peers.
    dist.monitored_barrier(control, timedelta(seconds=COLLECTIVE_TIMEOUT_S))
    # Not after an error: the others would learn of it, fail too, and might be on record before this rank's own error.
    # They learn of it when this process ends.
    dist.destroy_process_group()


def _device(local_rank: int) -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", device_index(local_rank, torch.cuda.device_count()))
    torch.cuda.set_device(device)
    return device


def device_index(local_rank: int, visible: int) -> int:
    """Which of the visible GPUs is this rank's.

    Raises:
        ClusterError: There are too few on this host.
    """
    if visible == 1 and "SLURM_LOCALID" in os.environ:  # the scheduler shows each task its own GPU alone
        return 0
    if local_rank >= visible:
        raise ClusterError(
            f"local_rank ({local_rank}) must be below the number of visible GPUs ({visible}) on {this_host()}, "
            "since each rank needs its own; lower the number of processes",
            [this_host()],
        )
    return local_rank
