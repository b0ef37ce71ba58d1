"""Where the ranks of one attempt find each other.

At file:///path all ranks open that file. At tcp://host:port rank 0 keeps a torch TCPStore on a port that its system
chooses, and announces it on the first free one of a few known ports: whoever connects there is told the attempt's
token and the store's port, at once and without being asked. So a port that another run or another service holds is
recognised by what it says, or by its silence, and nothing is ever sent to it. (torch's own client, connected to a
service that accepts and stays silent, waits without limit.)
"""

from __future__ import annotations

import errno
import hashlib
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from urllib.parse import urlsplit

import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous as rendezvous_at

from modlib.distributed.meeting import remedy, this_host
from modlib.runtime.errors import ClusterError, HangError, ModlibError

PORTS = range(20000, 30000)  # below the ports that Linux hands out by itself
NUM_CANDIDATES = 8
TRY_S = 1.0  # for one port to say what it is
RETRY_S = 0.2
UNREACHED = {
    "no answer",
    "unknown host",
    *map(os.strerror, (errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EHOSTDOWN, errno.ENETDOWN)),
}


@contextmanager
def open_store(
    url: str, rank: int, size: int, timeout_s: float, token: str = "", first_host: str = ""
) -> Iterator[dist.Store]:
    """The store of all ranks, findable while the `with` block lasts; who has it keeps it.

    Args:
        url: file:///path or tcp://host:port, the same on every rank. With tcp rank 0 runs on that host.
        rank: This rank.
        size: Number of ranks.
        timeout_s: How long the others look for rank 0, and the store's own limit.
        token: What tells this attempt from every other.
        first_host: The host of rank 0 by its name, for the error; "" where it is not known.

    Raises:
        HangError: Rank 0 is not to be found; it has the host if that at least answers.
        ClusterError: All ports are taken.
    """
    timeout = timedelta(seconds=timeout_s)
    parts = urlsplit(url)
    if parts.scheme != "tcp":
        yield next(rendezvous_at(url, rank=rank, world_size=size, timeout=timeout))[0]
        return
    if not parts.hostname or not parts.port:
        raise ModlibError(f"MODLIB_RENDEZVOUS ({url}) must be of the form tcp://host:port; give it both")
    if rank != 0:
        port = _find(parts.hostname, parts.port, timeout_s, token, first_host or parts.hostname)
        yield dist.TCPStore(parts.hostname, port, None, False, timeout=timeout)
        return
    listener = _listen(parts.port)
    store = dist.TCPStore("localhost", 0, None, True, timeout=timeout, wait_for_workers=False)
    threading.Thread(target=_announce, args=(listener, _announcement(token, store.port)), daemon=True).start()
    try:
        yield store
    finally:
        with suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)  # wakes the thread
        listener.close()


def candidates(port: int) -> list[int]:
    """The ports where rank 0 may announce itself, in the order they are tried."""
    return [port, *(other for other in range(port + 1, port + NUM_CANDIDATES) if other in PORTS)]


def _announcement(token: str, port: int | None = None) -> bytes:
    head = f"modlib rendezvous {hashlib.sha256(token.encode()).hexdigest()[:32]} "
    return (head if port is None else f"{head}{port}\n").encode()


def _announce(listener: socket.socket, text: bytes) -> None:
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:  # the ranks have met
            return
        with connection, suppress(OSError):
            connection.sendall(text)


def _listen(port: int) -> socket.socket:
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    problems = []
    for candidate in candidates(port):
        try:
            return socket.create_server(("", candidate), family=family, dualstack_ipv6=both, backlog=1024)
        except OSError as error:
            problems.append(f"{candidate}: {os.strerror(error.errno or 0)}")
    raise ClusterError(
        f"one of the ports of MODLIB_RENDEZVOUS must be free on {this_host()} ({'; '.join(problems)}); "
        f"choose another port from {PORTS.start} to {PORTS.stop - NUM_CANDIDATES}"
    )


def _find(host: str, port: int, timeout_s: float, token: str, name: str) -> int:
    """The port of this attempt's store."""
    deadline = time.monotonic() + timeout_s
    while True:
        seen = {}
        for candidate in candidates(port):
            store_port, seen[candidate] = _try(host, candidate, token)
            if store_port is not None:
                return store_port
        if time.monotonic() >= deadline:
            break
        time.sleep(RETRY_S)
    found = "; ".join(f"{candidate}: {what}" for candidate, what in seen.items())
    reached = not UNREACHED.issuperset(seen.values())
    hosts = [name] if reached else []  # else it may as well be this host that is cut off
    raise HangError(
        f"rank 0 (host {name}) did not reach the rendezvous within {timeout_s:g} s: {this_host()} does not find it at "
        f"its ports ({found}); {remedy(hosts)}",
        hosts,
    )


def _try(host: str, port: int, token: str) -> tuple[int | None, str]:
    """The store's port that is announced here for this token, or None; and what is here."""
    head = _announcement(token)
    said, connected = b"", False
    try:
        with socket.create_connection((host, port), timeout=TRY_S) as connection:
            connected = True
            deadline = time.monotonic() + TRY_S
            while not said.endswith(b"\n") and len(said) < 256:
                connection.settimeout(max(0.001, deadline - time.monotonic()))
                more = connection.recv(256)
                if not more:
                    break
                said += more
    except TimeoutError:
        return None, "said nothing" if connected else "no answer"
    except socket.gaierror:
        return None, "unknown host"
    except OSError as error:
        return None, error.strerror or str(error)
    if said.startswith(head) and said.endswith(b"\n"):
        return int(said.removeprefix(head)), ""
    return None, "another run" if said.startswith(head.rsplit(b" ", 2)[0]) else "another service"
