"""The texts that the ranks of one attempt exchange through a store, and what is said of a rank that gives none."""

from __future__ import annotations

import itertools
import json
import os
import socket
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import TypeVar

import torch.distributed as dist

from modlib.runtime.errors import ClusterError, HangError, ModlibError
from modlib.runtime.json_files import parse_json

T = TypeVar("T")
GRACE_S = 5.0  # how much later than rank 0 the others give up by themselves


@dataclass(frozen=True)
class Meeting:
    """The ranks that share a store, and the host of each.

    Args:
        store: What all of them can read and write.
        rank: This rank.
        hosts: The host of each rank, in rank order; "" where it is not known.
        numbers: Numbers the calls of `gather`, alike on all ranks.
    """

    store: dist.Store
    rank: int
    hosts: tuple[str, ...]
    numbers: Iterator[int] = field(default_factory=itertools.count, repr=False, compare=False)

    def gather(self, name: str, text: str, timeout_s: float) -> dict[int, str]:
        """Every rank's text by rank, the same on every rank; a rank that gave none in time is absent. All call it.

        Rank 0 decides who is, so that all ranks say the same. Where it does not decide, each looks for itself.

        Args:
            name: What is gathered.
            text: This rank's.
            timeout_s: How long rank 0 waits for the others.

        Raises:
            HangError: Rank 0, which keeps the store, is gone or frozen.
        """
        key = f"{next(self.numbers)}/{name}"
        if self.rank == 0:
            return self._collect(key, text, timeout_s)
        try:
            return within(timeout_s + 3 * GRACE_S, lambda: self._ask(key, text, timeout_s))
        except (TimeoutError, dist.DistNetworkError) as error:
            raise HangError(
                f"{self.who([0])}, which the other ranks ask, stopped answering ({name}); {remedy(self.hosts[:1])}",
                self.hosts_of([0]),
            ) from error

    def _collect(self, name: str, text: str, timeout_s: float) -> dict[int, str]:
        self.store.set(f"{name}/0", text)
        keys = [f"{name}/{rank}" for rank in range(len(self.hosts))]
        with suppress(RuntimeError):  # who is missing is found below
            self.store.wait(keys, timedelta(seconds=timeout_s))
        found = self._found(name)
        self.store.set(f"{name}/all", json.dumps(found))
        if len(found) < len(self.hosts):  # this process will end, and a store on TCP with it: first let the others read
            with suppress(RuntimeError):
                self.store.wait([f"{name}/read/{rank}" for rank in found if rank], timedelta(seconds=GRACE_S))
        return found

    def _ask(self, name: str, text: str, timeout_s: float) -> dict[int, str]:
        self.store.set(f"{name}/{self.rank}", text)
        try:
            self.store.wait([f"{name}/all"], timedelta(seconds=timeout_s + GRACE_S))
        except dist.DistNetworkError:
            raise
        except RuntimeError:
            return self._found(name)
        found = {int(rank): text for rank, text in parse_json(self.store.get(f"{name}/all"), dict[str, str]).items()}
        self.store.set(f"{name}/read/{self.rank}", "")
        return found

    def _found(self, name: str) -> dict[int, str]:
        keys = {rank: f"{name}/{rank}" for rank in range(len(self.hosts))}
        return {rank: self.store.get(key).decode() for rank, key in keys.items() if self.store.check([key])}

    def hosts_of(self, ranks: Iterable[int]) -> tuple[str, ...]:
        """The known hosts of these ranks, each once."""
        return tuple(dict.fromkeys(self.hosts[rank] for rank in ranks if self.hosts[rank]))

    def who(self, ranks: Iterable[int]) -> str:
        """Ranks with their hosts: "rank 2, 3 (host node2) and rank 5 (host node3)"."""
        by_host: dict[str, list[str]] = {}
        for rank in ranks:
            by_host.setdefault(self.hosts[rank], []).append(str(rank))
        parts = [f"rank {', '.join(of)}" + (f" (host {host})" if host else "") for host, of in by_host.items()]
        return " and ".join(filter(None, [", ".join(parts[:-1]), parts[-1]]))


def meet(store: dist.Store, rank: int, planned: Sequence[str], device_type: str, timeout_s: float) -> Meeting:
    """Wait until every rank is there; who is missing can be named now, and no more inside a collective.

    Args:
        store: What the ranks have in common.
        rank: This rank.
        planned: The host of each rank as far as the launcher knows it; "" where it does not.
        device_type: What this rank computes on; the same for all, or they could not even form a group.
        timeout_s: How long to wait for the last one.

    Raises:
        HangError: Not all came; it has the missing ones' hosts, unless most are missing.
        ClusterError: Some hosts lack the devices of the others.
    """
    expected = Meeting(store, rank, tuple(planned))
    size = len(expected.hosts)
    found = expected.gather("arrived", json.dumps([this_host(), device_type]), timeout_s)
    arrived = {other: parse_json(text, list[str]) for other, text in found.items()}
    missing = [other for other in range(size) if other not in arrived]
    if missing:
        present = dict.fromkeys(host for host, _ in arrived.values())
        hosts = expected.hosts_of(missing)
        if len(hosts) > len(present):  # then it is more likely the host that sees the others missing
            hosts = ()
        raise HangError(
            f"{expected.who(missing)} did not reach the rendezvous within {timeout_s:g} s; {len(arrived)} of {size} "
            f"ranks present (hosts {', '.join(present)}); {remedy(hosts)}",
            hosts,
        )
    meeting = replace(expected, hosts=tuple(arrived[other][0] for other in range(size)))
    without = [other for other in range(size) if arrived[other][1] == "cpu"]
    if 0 < len(without) < size:
        hosts = meeting.hosts_of(without)
        raise ClusterError(
            f"devices (cpu) of {meeting.who(without)} must be the other ranks' (cuda); torch finds no usable GPU "
            f"there, look at its driver; {remedy(hosts)}",
            hosts,
        )
    return meeting


def planned_hosts(size: int) -> tuple[str, ...]:
    """The host of each rank as MODLIB_HOSTS says, comma separated and in rank order; "" for each where it is not set.

    Raises:
        ModlibError: It names another number of hosts.
    """
    hosts = tuple(host.strip() for host in os.environ.get("MODLIB_HOSTS", "").split(",") if host.strip())
    if hosts and len(hosts) != size:
        raise ModlibError(
            f"number of hosts in MODLIB_HOSTS ({len(hosts)}) must be the number of ranks ({size}); "
            "name the host of every rank, or unset it"
        )
    return hosts or ("",) * size


def this_host() -> str:
    """This host's name, the scheduler's where it gives one: it is what can be left out of the next attempt."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def same_host(one: str, other: str) -> bool:
    """Whether two names mean the same host: with the domain or without."""
    return one == other or one.startswith(f"{other}.") or other.startswith(f"{one}.")


def remedy(hosts: Sequence[str]) -> str:
    """What to do about ranks that did not do their part."""
    text = "look for why in the logs of this attempt"
    named = ", ".join(host for host in hosts if host)
    return f"{text}, or leave {named} out of the next" if named else text


def within(limit_s: float, function: Callable[[], T]) -> T:
    """What the function returns or raises; TimeoutError where it takes too long, and then it is left behind."""
    results: list[T] = []
    errors: list[BaseException] = []

    def call() -> None:
        try:
            results.append(function())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(limit_s)
    if errors:
        raise errors[0]
    if not results:
        raise TimeoutError(f"no answer within {limit_s:g} s")
    return results[0]
