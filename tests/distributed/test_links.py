"""Which host is accused, from measured times of links."""

from __future__ import annotations

import itertools
import random

import pytest

from modlib.distributed.links import SLOW_FLOOR_S, SlowHost, slow_hosts

FAST, SLOW = 0.002, 0.5


def ring(hosts: list[str], slow: set[str], fast: float = FAST) -> dict[tuple[int, int], float]:
    """Times round the ring, both ways, where every link of a slow host is slow."""
    size = len(hosts)
    links = {(rank, (rank + step) % size) for rank in range(size) for step in (1, -1)}
    return {link: SLOW if {hosts[rank] for rank in link} & slow else fast for link in links if link[0] != link[1]}


def names(found: list[SlowHost]) -> list[str]:
    return sorted(slow.host for slow in found)


@pytest.mark.parametrize("ranks_per_host", [1, 2, 4])
@pytest.mark.parametrize("num_hosts", [3, 4, 5, 8])
def test_each_single_slow_host_is_named_and_no_other(num_hosts: int, ranks_per_host: int) -> None:
    hosts = [f"node{index // ranks_per_host}" for index in range(num_hosts * ranks_per_host)]
    for host in dict.fromkeys(hosts):
        assert names(slow_hosts(ring(hosts, {host}), hosts)) == [host]
    assert slow_hosts(ring(hosts, set()), hosts) == []


def test_two_of_many_that_are_not_alone_between_them() -> None:
    hosts = [f"node{rank}" for rank in range(8)]
    for pair in itertools.combinations(hosts, 2):
        first, second = (hosts.index(host) for host in pair)
        if (second - first) % 8 in (1, 3, 4, 5, 7):  # a host between two slow ones has no fast link, and is named too
            assert names(slow_hosts(ring(hosts, set(pair)), hosts)) == sorted(pair)


def test_a_host_that_only_sends_slowly_is_told_from_those_it_sends_to() -> None:
    hosts = [f"node{rank}" for rank in range(4)]
    times = {link: SLOW if link[0] == 2 else FAST for link in ring(hosts, set())}
    assert names(slow_hosts(times, hosts)) == ["node2"]
    times = {link: SLOW if link[1] == 2 else FAST for link in ring(hosts, set())}
    assert names(slow_hosts(times, hosts)) == ["node2"]


def test_one_slow_link_is_no_hosts_fault() -> None:
    hosts = [f"node{rank}" for rank in range(4)]
    times = ring(hosts, set()) | {(1, 2): SLOW, (2, 1): SLOW}
    assert slow_hosts(times, hosts) == []


def test_links_between_hosts_are_not_compared_with_those_within() -> None:
    hosts = [f"node{rank // 4}" for rank in range(16)]
    times = {link: FAST if hosts[link[0]] == hosts[link[1]] else SLOW for link in ring(hosts, set())}
    assert slow_hosts(times, hosts) == []


def test_a_slow_network_is_seen_past_fast_links_within() -> None:
    hosts = [f"node{rank // 4}" for rank in range(16)]
    within = {link for link in ring(hosts, set()) if hosts[link[0]] == hosts[link[1]]}
    times = {link: FAST if link in within else seconds for link, seconds in ring(hosts, {"node2"}).items()}
    assert names(slow_hosts(times, hosts)) == ["node2"]


def test_of_two_hosts_the_links_within_tell() -> None:
    hosts = ["node1", "node1", "node2", "node2"]
    assert slow_hosts(ring(hosts, {"node2"}), hosts) == [SlowHost("node2", SLOW, FAST)]
    assert slow_hosts({(0, 1): SLOW, (1, 0): FAST}, ["node1", "node2"]) == []


def test_what_is_fast_enough_is_not_accused() -> None:
    hosts = [f"node{rank}" for rank in range(4)]
    times = ring(hosts, {"node3"}, fast=0.00001)
    just = {link: SLOW_FLOOR_S * 0.99 if seconds == SLOW else seconds for link, seconds in times.items()}
    assert slow_hosts(just, hosts) == []
    assert names(slow_hosts({link: SLOW_FLOOR_S if s == SLOW else s for link, s in times.items()}, hosts)) == ["node3"]


def test_noise_below_the_factor_accuses_nobody() -> None:
    generator = random.Random(0)
    hosts = [f"node{rank // 2}" for rank in range(12)]
    for _ in range(200):
        times = {link: generator.uniform(0.1, 0.39) for link in ring(hosts, set())}
        assert slow_hosts(times, hosts) == []
