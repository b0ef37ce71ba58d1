"""Texts between ranks through a store, and ranks that give none. Ranks are threads here."""

from __future__ import annotations

import os
import pickle
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
import torch.distributed as dist

from modlib.distributed import meeting
from modlib.distributed.meeting import Meeting, meet, planned_hosts, same_host, this_host, within
from modlib.runtime.errors import ClusterError, HangError, ModlibError
from tests import forked

HOSTS = ("node1", "node1", "node2", "node2", "node3")


def gather(present: dict[int, str], timeout_s: float = 20) -> dict[int, dict[int, str]]:
    """What each of the present ranks of five gets."""
    store = dist.HashStore()
    with ThreadPoolExecutor(len(present)) as pool:
        calls = {
            rank: pool.submit(Meeting(store, rank, HOSTS).gather, "x", text, timeout_s)
            for rank, text in present.items()
        }
        return {rank: call.result() for rank, call in calls.items()}


def test_every_rank_gets_every_text() -> None:
    texts = {rank: f"text of {rank}" for rank in range(5)}
    assert gather(texts) == dict.fromkeys(range(5), texts)


def test_who_gave_none_is_absent_for_all() -> None:
    texts = {0: "a", 1: "b", 4: "c"}
    assert gather(texts, timeout_s=0.3) == dict.fromkeys(texts, texts)


def test_without_rank_0_the_others_see_for_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meeting, "GRACE_S", 0.5)
    texts = {1: "b", 4: "c"}
    assert gather(texts, timeout_s=0.3) == dict.fromkeys(texts, texts)


def test_one_name_can_be_gathered_again() -> None:
    store = dist.HashStore()
    ranks = [Meeting(store, rank, ("", "")) for rank in range(2)]
    with ThreadPoolExecutor(2) as pool:
        for text in ("first", "second"):
            calls = [pool.submit(rank.gather, "x", text, 5) for rank in ranks]
            assert [call.result() for call in calls] == [{0: text, 1: text}] * 2


STORE = """
import time, torch.distributed as dist
from datetime import timedelta
store = dist.TCPStore("localhost", 0, None, True, timeout=timedelta(seconds=5), wait_for_workers=False)
print(store.port, flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("how", [signal.SIGSTOP, signal.SIGKILL])
@pytest.mark.slow
def test_a_rank_0_that_is_frozen_or_gone(how: signal.Signals, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meeting, "GRACE_S", 0.2)
    with forked.Popen([sys.executable, "-c", STORE], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            port = int(process.stdout.readline())
            store = dist.TCPStore("localhost", port, None, False, timeout=timedelta(seconds=5))
            process.send_signal(how)
            if how == signal.SIGKILL:
                process.wait()
            began = time.monotonic()
            with pytest.raises(HangError, match=r"rank 0 \(host node1\), which the other ranks ask, stopped") as caught:
                Meeting(store, 1, HOSTS).gather("x", "", 0.5)
            assert time.monotonic() - began < 10
            assert caught.value.hosts == ("node1",)
        finally:
            process.kill()


def arrive(device_types: dict[int, str], planned: tuple[str, ...], timeout_s: float = 20) -> dict[int, object]:
    """The hosts that each rank learns of, or its error."""
    store = dist.HashStore()

    def one(rank: int) -> object:
        try:
            return meet(store, rank, planned, device_types[rank], timeout_s).hosts
        except ModlibError as error:
            return error

    with ThreadPoolExecutor(len(device_types)) as pool:
        return dict(zip(device_types, pool.map(one, device_types), strict=True))


def test_ranks_that_meet_know_all_hosts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURMD_NODENAME", "node9")
    assert arrive({0: "cpu", 1: "cpu"}, ("", "")) == dict.fromkeys(range(2), ("node9", "node9"))
    assert arrive({0: "cuda", 1: "cuda"}, ("node1", "node2")) == dict.fromkeys(range(2), ("node9", "node9"))


def test_missing_ranks_without_a_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURMD_NODENAME", "node9")
    for error in arrive({0: "cpu", 2: "cpu"}, ("",) * 4, timeout_s=0.2).values():
        assert isinstance(error, HangError)
        assert str(error) == (
            "rank 1, 3 did not reach the rendezvous within 0.2 s; 2 of 4 ranks present (hosts node9); "
            "look for why in the logs of this attempt"
        )
        assert error.hosts == ()


def test_missing_ranks_with_a_plan() -> None:
    for error in arrive({0: "cpu", 1: "cpu"}, ("node1", "node1", "node2", "node2"), timeout_s=0.2).values():
        assert isinstance(error, HangError)
        assert str(error).startswith(
            "rank 2, 3 (host node2) did not reach the rendezvous within 0.2 s; 2 of 4 ranks present (hosts "
        )
        assert str(error).endswith("); look for why in the logs of this attempt, or leave node2 out of the next")
        assert error.hosts == ("node2",)


def test_a_host_that_misses_most_others_does_not_blame_them() -> None:
    (error,) = arrive({0: "cpu"}, ("node1", "node2", "node3"), timeout_s=0.2).values()
    assert isinstance(error, HangError)
    assert str(error).startswith(
        "rank 1 (host node2) and rank 2 (host node3) did not reach the rendezvous within 0.2 s"
    )
    assert error.hosts == ()


def test_a_host_without_its_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURMD_NODENAME", "node9")
    for error in arrive({0: "cuda", 1: "cpu", 2: "cuda"}, ("",) * 3).values():
        assert isinstance(error, ClusterError)
        assert str(error) == (
            "devices (cpu) of rank 1 (host node9) must be the other ranks' (cuda); torch finds no usable GPU there, "
            "look at its driver; look for why in the logs of this attempt, or leave node9 out of the next"
        )
        assert error.hosts == ("node9",)


def test_ranks_are_named_with_their_hosts() -> None:
    ranks = Meeting(dist.HashStore(), 0, HOSTS)
    assert ranks.who([2]) == "rank 2 (host node2)"
    assert ranks.who([0, 1, 2]) == "rank 0, 1 (host node1) and rank 2 (host node2)"
    assert ranks.who(range(5)) == "rank 0, 1 (host node1), rank 2, 3 (host node2) and rank 4 (host node3)"
    assert Meeting(dist.HashStore(), 0, ("", "")).who([0, 1]) == "rank 0, 1"
    assert ranks.hosts_of([4, 2, 3]) == ("node3", "node2")


def test_planned_hosts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MODLIB_HOSTS", raising=False)
    assert planned_hosts(2) == ("", "")
    monkeypatch.setenv("MODLIB_HOSTS", "node1, node2,")
    assert planned_hosts(2) == ("node1", "node2")
    text = "number of hosts in MODLIB_HOSTS (2) must be the number of ranks (4); name the host of every rank, or unset"
    with pytest.raises(ModlibError, match=re.escape(text)):
        planned_hosts(4)


def test_names_of_one_host(monkeypatch: pytest.MonkeyPatch) -> None:
    assert same_host("node1", "node1.cluster.org")
    assert same_host("node1.cluster.org", "node1")
    assert not same_host("node1", "node10")
    assert not same_host("10.0.0.1", "10.0.0.10")
    monkeypatch.delenv("SLURMD_NODENAME", raising=False)
    assert this_host() == os.uname().nodename


def test_within_a_time() -> None:
    assert within(5, lambda: 3) == 3
    with pytest.raises(ZeroDivisionError):
        within(5, lambda: 1 / 0)
    with pytest.raises(TimeoutError):
        within(0.05, lambda: time.sleep(0.5))


@pytest.mark.parametrize("kind", [HangError, ClusterError])
def test_hosts_of_an_error_survive_pickling(kind: type[HangError] | type[ClusterError]) -> None:
    assert kind("text").hosts == ()
    copy = pickle.loads(pickle.dumps(kind("text", ["node1"])))
    assert (str(copy), copy.hosts) == ("text", ("node1",))
