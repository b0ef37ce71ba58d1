"""Ranks that look for each other over TCP, on ports that others hold too. Ranks are threads here."""

from __future__ import annotations

import random
import re
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from datetime import timedelta
from pathlib import Path

import pytest
import torch.distributed as dist

from modlib.distributed.rendezvous import candidates, open_store
from modlib.runtime.errors import ClusterError, HangError, ModlibError


def free_ports() -> int:
    """The first of eight neighbouring ports that nobody listens on."""
    while True:
        port = random.SystemRandom().randrange(20000, 29992)
        with suppress(OSError), ExitStack() as stack:
            for candidate in candidates(port):
                stack.enter_context(socket.create_server(("", candidate)))
            return port


def exchange(port: int, rank: int, token: str, all_there: threading.Barrier) -> str:
    """Open the store, give a text, take the other rank's."""
    with open_store(f"tcp://localhost:{port}", rank, 2, 20, token) as store:
        store.set(str(rank), f"{token} {rank}")
        text = store.get(str(1 - rank)).decode()
        all_there.wait(20)
    return text


def run(port: int, *tokens: str) -> dict[tuple[str, int], str]:
    """Two ranks for each token, all at the same port and at the same time; what each read."""
    all_there = threading.Barrier(2 * len(tokens))
    with ThreadPoolExecutor(2 * len(tokens)) as pool:
        calls = {
            (token, rank): pool.submit(exchange, port, rank, token, all_there) for token in tokens for rank in (1, 0)
        }
        return {key: call.result() for key, call in calls.items()}


@contextmanager
def service(port: int, says: bytes | None) -> Iterator[list[bytes]]:
    """Something that listens: silent and open for ever where it says None. Yields what it was told."""
    told: list[bytes] = []
    listener = socket.create_server(("", port))
    kept = []

    def serve() -> None:
        with suppress(OSError):
            while True:
                connection, _ = listener.accept()
                kept.append(connection)
                if says is not None:
                    connection.sendall(says)
                    connection.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield told
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()
        listener.close()
        for connection in kept:
            if says is None:
                connection.setblocking(False)
                with suppress(OSError):
                    told.append(connection.recv(100))
            connection.close()


def test_two_ranks_meet() -> None:
    assert run(free_ports(), "a") == {("a", 0): "a 1", ("a", 1): "a 0"}


def test_three_runs_on_one_port_each_find_their_own() -> None:
    read = run(free_ports(), "a", "b", "c")
    assert read == {(token, rank): f"{token} {1 - rank}" for token in "abc" for rank in (0, 1)}


@pytest.mark.parametrize("says", [None, b"SSH-2.0-OpenSSH_9.2\r\n", b"", b"modlib rendezvous \n", b"x" * 5000])
def test_a_port_of_another_service_is_passed_over(says: bytes | None) -> None:
    port = free_ports()
    began = time.monotonic()
    with service(port, says) as told:
        assert run(port, "a") == {("a", 0): "a 1", ("a", 1): "a 0"}
    assert time.monotonic() - began < 10
    assert set(told) <= {b""}  # nothing was sent to it


def test_a_port_of_another_torch_store_is_passed_over() -> None:
    port = free_ports()
    store = dist.TCPStore("localhost", port, None, True, timeout=timedelta(seconds=5), wait_for_workers=False)
    assert run(port, "a") == {("a", 0): "a 1", ("a", 1): "a 0"}
    assert store.num_keys() <= 1  # nobody took it for theirs


def test_the_port_is_free_again_after_the_meeting() -> None:
    port = free_ports()
    run(port, "a")
    socket.create_server(("", port)).close()
    run(port, "b")


def test_when_all_ports_are_taken_they_are_listed() -> None:
    port = free_ports()
    with ExitStack() as stack:
        for candidate in candidates(port):
            stack.enter_context(socket.create_server(("", candidate)))
        text = f"({port}: Address already in use; {port + 1}: Address already in use; "
        with (
            pytest.raises(ClusterError, match=re.escape(text)) as caught,
            open_store(f"tcp://localhost:{port}", 0, 2, 5),
        ):
            pass
    assert str(caught.value).startswith("one of the ports of MODLIB_RENDEZVOUS must be free on ")
    assert str(caught.value).endswith("; choose another port from 20000 to 29992")


def test_a_rank_0_that_does_not_come_is_named_with_its_host() -> None:
    port = free_ports()
    with (
        service(port, None),
        service(port + 1, b"HTTP/1.1 400 Bad Request\r\n"),
        open_store(f"tcp://localhost:{port + 2}", 0, 2, 5, "other"),
        pytest.raises(HangError) as caught,
        open_store(f"tcp://localhost:{port}", 1, 2, 1.0, "mine", "node1"),
    ):
        pass
    assert str(caught.value).startswith("rank 0 (host node1) did not reach the rendezvous within 1 s: ")
    assert (
        f" does not find it at its ports ({port}: said nothing; {port + 1}: another service; {port + 2}: another run; "
        f"{port + 3}: Connection refused; " in str(caught.value)
    )
    assert str(caught.value).endswith("; look for why in the logs of this attempt, or leave node1 out of the next")
    assert caught.value.hosts == ("node1",)


@pytest.mark.parametrize(("host", "what"), [("localhost", "no answer"), ("no-such-host.invalid", "unknown host")])
def test_a_host_that_is_not_reached_is_not_blamed(host: str, what: str) -> None:
    """It may be this one that is cut off."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full, ExitStack() as stack:
        address = full.getsockname()
        for _ in range(4):  # more than wait in its queue: from now on, packets to it are dropped
            connection = stack.enter_context(socket.socket())
            connection.setblocking(False)
            connection.connect_ex(address)
        with (
            pytest.raises(HangError) as caught,
            open_store(f"tcp://{host}:{address[1]}", 1, 2, 0.1),
        ):
            pass
    assert str(caught.value).startswith(f"rank 0 (host {host}) did not reach the rendezvous within 0.1 s: ")
    assert str(caught.value).endswith(f"({address[1]}: {what}); look for why in the logs of this attempt")
    assert caught.value.hosts == ()


@pytest.mark.parametrize("url", ["tcp://localhost", "tcp://:20000"])
def test_an_incomplete_url(url: str) -> None:
    text = rf"MODLIB_RENDEZVOUS \({url}\) must be of the form tcp://host:port; give it both"
    with pytest.raises(ModlibError, match=text), open_store(url, 0, 2, 1):
        pass


def test_a_file(tmp_path: Path) -> None:
    with open_store(f"file://{tmp_path}/store", 0, 2, 5) as one, open_store(f"file://{tmp_path}/store", 1, 2, 5) as two:
        one.set("a", "b")
        assert two.get("a") == b"b"


def test_candidates_stay_outside_the_ports_that_the_system_gives_away() -> None:
    assert candidates(20000) == list(range(20000, 20008))
    assert candidates(29997) == [29997, 29998, 29999]
    assert candidates(29500) == list(range(29500, 29508))
    assert candidates(6000) == [6000]  # chosen by hand
    assert candidates(19996) == [19996, 20000, 20001, 20002, 20003]
