"""How fast the hosts of a run reach each other: messages round the ring of ranks, both ways, timed."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

from modlib.runtime import faults

SIZES = (64 << 10, 512 << 10, 4 << 20)  # the next one only where links are fast enough for it
GROWTH = 8
REPETITIONS = 5  # the fastest counts: one busy moment accuses nobody
BUDGET_S = 0.5  # for the repetitions of one size
NEXT_LIMIT_S = 1.0  # a size is left out where one repetition would take longer than this
SLOW_FACTOR = 4.0
SLOW_FLOOR_S = 0.025  # 160 MiB/s with the largest size; links too slow for a larger size are above it with any


@dataclass(frozen=True)
class SlowHost:
    """A host whose links are slow, with its best time and the median of all hosts, in seconds."""

    host: str
    seconds: float
    median: float


def time_links(group: dist.ProcessGroup, rank: int, size: int, limit_s: float) -> dict[int, float]:
    """Seconds that a message from each neighbour of the ring took to this rank. All ranks call it together.

    Args:
        group: A gloo group of all ranks, at least two.
        rank: This rank.
        size: Number of ranks.
        limit_s: How long one message may take.

    Raises:
        RuntimeError: A neighbour is gone, or too slow.
    """
    before, after = (rank - 1) % size, (rank + 1) % size
    times: dict[int, float] = {}
    for num_bytes in SIZES:
        times = {before: float("inf"), after: float("inf")}
        message, room = torch.zeros(num_bytes, dtype=torch.uint8), torch.empty(num_bytes, dtype=torch.uint8)
        spent, fastest = 0.0, float("inf")
        for _ in range(REPETITIONS):
            began = time.perf_counter()
            for source, target in ((before, after), (after, before)):
                _longest(0.0, group, limit_s)  # all start at once
                start = time.perf_counter()
                receiving = dist.irecv(room, source, group=group)
                faults.point("preflight.exchange", str(rank))
                sending = dist.isend(message, target, group=group)
                assert receiving is not None
                assert sending is not None
                receiving.wait(timedelta(seconds=limit_s))
                times[source] = min(times[source], time.perf_counter() - start)
                sending.wait(timedelta(seconds=limit_s))
            took = _longest(time.perf_counter() - began, group, limit_s)  # so that all go on, or none
            spent, fastest = spent + took, min(fastest, took)
            if spent > BUDGET_S:
                break
        if fastest * GROWTH > NEXT_LIMIT_S:
            break
    return times


def slow_hosts(times: Mapping[tuple[int, int], float], hosts: Sequence[str]) -> list[SlowHost]:
    """The hosts whose every link is much slower than the others'.

    Links within a host are compared with such links, links between hosts with such links. A host counts by its fastest
    link each way, since a slow neighbour slows one link, and by the slower of the two ways. Two hosts are not told
    apart by the link between them.

    Args:
        times: Seconds by (source rank, target rank).
        hosts: The host of each rank.
    """
    found: dict[str, SlowHost] = {}
    for inside in (True, False):
        links = {link: seconds for link, seconds in times.items() if (hosts[link[0]] == hosts[link[1]]) == inside}
        score: dict[str, float] = {}
        for end in (0, 1):
            fastest: dict[str, float] = {}
            for link, seconds in links.items():
                host = hosts[link[end]]
                fastest[host] = min(fastest.get(host, float("inf")), seconds)
            for host, seconds in fastest.items():
                score[host] = max(score.get(host, 0.0), seconds)
        if len(score) < 2:
            continue
        median = statistics.median_low(score.values())
        for host, seconds in score.items():
            if seconds >= max(SLOW_FACTOR * median, SLOW_FLOOR_S):
                found.setdefault(host, SlowHost(host, seconds, median))
    return list(found.values())


def check_sum(device: torch.device, rank: int, size: int, limit_s: float) -> float:
    """Reduce a few KiB over the ranks of the training group; returns the seconds it took.

    Raises:
        RuntimeError: The sum is wrong, or it took too long.
    """
    began = time.monotonic()
    values = torch.full((1 << 12,), float(rank + 1), device=device)
    work = dist.all_reduce(values, async_op=True)
    assert work is not None
    if device.type == "cuda":  # wait() would only order streams
        while not work.is_completed():
            if time.monotonic() - began > limit_s:
                raise RuntimeError(f"the sum over all ranks took longer than {limit_s:g} s")
            time.sleep(0.001)
    work.wait(timedelta(seconds=limit_s))
    expected, low, high = size * (size + 1) / 2, values.min().item(), values.max().item()
    if low != expected or high != expected:
        raise RuntimeError(f"the sum over all ranks was {low:g} to {high:g} and must be {expected:g}")
    return time.monotonic() - began


def _longest(seconds: float, group: dist.ProcessGroup, limit_s: float) -> float:
    longest = torch.tensor([seconds], dtype=torch.float64)
    work = dist.all_reduce(longest, op=dist.ReduceOp.MAX, group=group, async_op=True)
    assert work is not None
    work.wait(timedelta(seconds=limit_s))
    return longest.item()
