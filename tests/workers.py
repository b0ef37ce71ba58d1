"""Run a test's function on several ranks, in processes that are already started.

`run_ranks(2, function, 3, name="x")` calls `function(3, name="x")` on two ranks, each with `torch.distributed` (gloo)
initialised, and returns the two results in the order of the ranks. Importing torch takes seconds, so the processes of
a world size are kept for the whole session; every call gets a process group of its own.

The function must be importable (defined at the top of a module) and its arguments and result must pickle. An exception
comes back as itself, with the rank's traceback as a note. A call past its deadline fails with the stacks of all ranks,
and the pool is killed; the next call starts a new one. The processes end with the test session, also by SIGKILL.
"""

from __future__ import annotations

import atexit
import contextlib
import faulthandler
import os
import pickle
import queue
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

from tests import forked

START_TIMEOUT_S = 120.0
PEER_GRACE_S = 5.0  # how long the other ranks may take to notice that one of them failed
ROOT = Path(__file__).resolve().parents[1]


class RankFailed(RuntimeError):
    """A rank died, or raised something that does not pickle."""


class RanksHung(RuntimeError):
    """The ranks did not finish in time; the message holds their stacks."""


def run_ranks(world_size: int, function: Callable[..., Any], *args: Any, timeout_s: float = 60, **kwargs: Any) -> list:
    """Call `function(*args, **kwargs)` on every rank and return the results by rank.

    Raises:
        RanksHung: The call took longer than `timeout_s`.
        RankFailed: A rank died or its exception does not pickle. Any other exception is the first failing rank's own.
    """
    pool = _pools.get(world_size)
    if pool is None or not pool.alive():
        if pool is not None:
            pool.kill()
        pool = _pools[world_size] = _Pool(world_size)
    try:
        return pool.run(function, args, kwargs, timeout_s)
    finally:
        if not pool.usable:
            pool.kill()
            del _pools[world_size]


def stop_pools() -> None:
    """End all processes of all pools."""
    while _pools:
        _pools.popitem()[1].kill()


_pools: dict[int, _Pool] = {}
atexit.register(stop_pools)


class _Pool:
    """The processes of one world size, each with a socket to this process."""

    def __init__(self, world_size: int) -> None:
        self.usable = True
        self.calls = 0
        self.folder = Path(tempfile.mkdtemp(prefix=f"modlib-ranks-{world_size}-"))
        self.processes: list[subprocess.Popen] = []
        self.sockets: list[socket.socket] = []
        for rank in range(world_size):
            ours, theirs = socket.socketpair()
            with theirs, open(self.folder / f"output-{rank}", "wb") as output:
                self.processes.append(
                    forked.Popen(
                        [sys.executable, "-m", "tests.workers", str(theirs.fileno()), str(self.folder)],
                        cwd=ROOT,
                        env=_environment(rank, world_size),
                        stdin=subprocess.DEVNULL,
                        stdout=output,
                        stderr=subprocess.STDOUT,
                        pass_fds=[theirs.fileno()],
                        start_new_session=True,
                    )
                )
            self.sockets.append(ours)
        try:
            self._collect(START_TIMEOUT_S)  # each rank reports when torch is imported
        except BaseException:
            self.kill()
            raise

    def alive(self) -> bool:
        return all(process.poll() is None for process in self.processes)

    def run(self, function: Callable[..., Any], args: tuple, kwargs: dict, timeout_s: float) -> list:
        self.calls += 1
        store = str(self.folder / f"store-{self.calls}")
        payload = pickle.dumps((os.getcwd(), list(sys.path), store, timeout_s, pickle.dumps((function, args, kwargs))))
        self.usable = False  # until every rank has answered
        for connection in self.sockets:
            with contextlib.suppress(OSError):  # a dead rank is reported below
                _send(connection, payload)
        answers = self._collect(timeout_s)
        self.usable = True
        failures = sorted((when, rank) for rank, (ok, when, _, _) in answers.items() if not ok)
        if failures:
            _raise_first(failures, answers)
        return [pickle.loads(answers[rank][2]) for rank in range(len(self.sockets))]

    def _collect(self, timeout_s: float) -> dict[int, tuple]:
        """Wait for one answer of every rank: (ok, when, pickled value, traceback text)."""
        answers: dict[int, tuple] = {}
        deadline = time.monotonic() + timeout_s
        failed_first = None
        while len(answers) < len(self.sockets):
            waiting = [c for rank, c in enumerate(self.sockets) if rank not in answers]
            limit = deadline if failed_first is None else min(deadline, failed_first + PEER_GRACE_S)
            ready, _, _ = select.select(waiting, [], [], max(0.0, limit - time.monotonic()))
            if not ready:
                if failed_first is not None:  # the others wait for a rank that will not come
                    self.usable = False
                    failures = sorted((when, rank) for rank, (ok, when, _, _) in answers.items() if not ok)
                    _raise_first(failures, answers)
                missing = [rank for rank in range(len(self.sockets)) if rank not in answers]
                text = f"ranks {missing} of {len(self.sockets)} did not finish within {timeout_s:g} s"
                raise RanksHung(f"{text}\n{self._stacks()}")
            for connection in ready:
                rank = self.sockets.index(connection)
                answer = _receive(connection)
                if answer is None:
                    self.processes[rank].wait(PEER_GRACE_S)
                    code = self.processes[rank].returncode
                    output = (self.folder / f"output-{rank}").read_text(errors="replace")[-3000:]
                    raise RankFailed(f"rank {rank} died with exit code {code}\n{output}")
                answers[rank] = pickle.loads(answer)
                if not answers[rank][0] and failed_first is None:
                    failed_first = time.monotonic()
        return answers

    def _stacks(self) -> str:
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(signal.SIGUSR1)  # faulthandler writes the stacks, also inside a collective
        texts = []
        for rank in range(len(self.processes)):
            path = self.folder / f"stacks-{rank}"
            deadline = time.monotonic() + 5
            size, written_at = 0, time.monotonic()  # a dump comes in pieces: complete when nothing is added any more
            while time.monotonic() < deadline and not (size and time.monotonic() - written_at > 0.2):
                time.sleep(0.02)
                if path.exists() and path.stat().st_size != size:
                    size, written_at = path.stat().st_size, time.monotonic()
            stack = path.read_text(errors="replace") if path.exists() else "no stack"
            texts.append(f"--- rank {rank} ---\n{stack}")
        return "\n".join(texts)

    def kill(self) -> None:
        for process in self.processes:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)  # each rank leads its own group, so its children go too
        for process in self.processes:
            process.wait()
        for connection in self.sockets:
            connection.close()
        self.usable = False
        shutil.rmtree(self.folder, ignore_errors=True)


def _raise_first(failures: list[tuple[float, int]], answers: dict[int, tuple]) -> None:
    _, rank = failures[0]
    _, _, pickled, text = answers[rank]
    try:
        error = pickle.loads(pickled)
    except Exception:
        error = RankFailed(text.strip().rsplit("\n", 1)[-1])
    for _, other in failures:
        error.add_note(f"on rank {other} of {len(answers)}:\n{answers[other][3]}")
    raise error


def _environment(rank: int, world_size: int) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "MASTER_", "TORCHELASTIC_", "PYTEST_"))}
    return kept | {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "LOCAL_WORLD_SIZE": str(world_size),
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
        "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
    }


def _send(connection: socket.socket, payload: bytes) -> None:
    connection.sendall(struct.pack("<Q", len(payload)) + payload)


def _receive(connection: socket.socket) -> bytes | None:
    """Read one message; None when the other side is gone."""
    header = _read(connection, 8)
    return None if header is None else _read(connection, struct.unpack("<Q", header)[0])


def _read(connection: socket.socket, size: int) -> bytes | None:
    chunks = bytearray()
    while len(chunks) < size:
        try:
            chunk = connection.recv(min(size - len(chunks), 1 << 20))
        except ConnectionError:
            return None
        if not chunk:
            return None
        chunks += chunk
    return bytes(chunks)


# ---------------------------------------------------------------------------------------------- inside a rank


def _serve(connection: socket.socket, folder: Path) -> None:
    stacks = open(folder / f"stacks-{os.environ['RANK']}", "w")  # noqa: SIM115  open for the process's whole life
    faulthandler.register(signal.SIGUSR1, file=stacks, all_threads=True)
    faulthandler.enable()
    calls: queue.Queue[bytes] = queue.Queue()
    threading.Thread(target=_read_calls, args=(connection, calls, folder), daemon=True).start()
    import torch.distributed

    torch.set_num_threads(1)
    _send(connection, pickle.dumps((True, time.time(), b"", "")))
    while True:
        working_directory, path, store, timeout_s, call = pickle.loads(calls.get())
        os.chdir(working_directory)
        sys.path[:] = path
        _send(connection, pickle.dumps(_answer(store, timeout_s, call)))


def _read_calls(connection: socket.socket, calls: queue.Queue[bytes], folder: Path) -> None:
    """End this process as soon as the test session is gone, even while the main thread hangs in a collective."""
    parent = os.getppid()
    while os.getppid() == parent:
        if select.select([connection], [], [], 1.0)[0]:
            message = _receive(connection)
            if message is None:
                break
            calls.put(message)
    shutil.rmtree(folder, ignore_errors=True)
    os.killpg(0, signal.SIGKILL)


def _answer(store: str, timeout_s: float, call: bytes) -> tuple[bool, float, bytes, str]:
    import torch.distributed as dist

    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if "gin" in sys.modules:
        sys.modules["gin"].clear_config()
    try:
        dist.init_process_group(
            "gloo",
            store=dist.FileStore(store, world_size),
            rank=rank,
            world_size=world_size,
            timeout=timedelta(seconds=timeout_s + PEER_GRACE_S),  # the deadline's report is the better one
        )
        dist.barrier()  # a rank that is done at once must not close connections that another is still opening
        function, args, kwargs = pickle.loads(call)
        return True, time.time(), pickle.dumps(function(*args, **kwargs)), ""
    except (Exception, SystemExit) as error:
        text = traceback.format_exc()
        try:
            pickled = pickle.dumps(error)
        except Exception:
            pickled = b""
        return False, time.time(), pickled, text
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


if __name__ == "__main__":
    from tests.workers import _serve as serve  # by its real name, so that functions of this module pickle

    serve(socket.socket(fileno=int(sys.argv[1])), Path(sys.argv[2]))
