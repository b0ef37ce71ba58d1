"""Processes that encode blocks, and give them back in order."""

from __future__ import annotations

import os
import pickle
import queue
import socket
import subprocess
import sys
import threading
import traceback
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import replace
from multiprocessing.connection import Connection, wait
from types import TracebackType
from typing import Any

from modlib.data.packing.block_encoder import BlockEncoder, EncodedBlock
from modlib.data.text.sources import Block
from modlib.runtime.errors import DataError, ModlibError
from modlib.runtime.signals import ignore_stop_signals

_LOOK_S = 2.0  # how often it is looked whether a process that says nothing is alive
_AHEAD = 2  # blocks each process has at a time, so that it never waits for the next one
_END_S = 5.0
_START = (
    "import ast, sys; sys.path[:] = ast.literal_eval(sys.argv[2]); from modlib.data.packing import workers; "
    "workers.serve()"
)
# Each process is one core: the libraries' own threads would only get into each other's way.
_ONE_THREAD = {"TOKENIZERS_PARALLELISM": "false", "RAYON_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}


class PackWorkers:
    """Encodes blocks in processes of their own; use as a context manager.

    They are started by their own command line, so that a script that packs needs no `__main__` guard, and end when
    the connection to this process ends, however that happens.

    Args:
        num_workers: Processes, which begin to start; with 1, this process does the work itself.
    """

    def __init__(self, num_workers: int) -> None:
        self._workers: dict[Connection, subprocess.Popen[bytes]] = {}
        if num_workers > 1:
            try:
                for _ in range(num_workers):
                    self._start()
            except BaseException:
                self.close()
                raise

    def _start(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-c", _START, str(theirs.fileno()), repr(sys.path)],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                env=os.environ | _ONE_THREAD,
            )
        self._workers[Connection(ours.detach())] = process

    def encode(self, encoder: BlockEncoder, blocks: Iterable[Block]) -> Iterator[tuple[Block, EncodedBlock]]:
        """Each block, without its data, and what the encoder made of it, in the order of the blocks; called once.

        Raises:
            DataError: A process ended by itself.
        """
        if not self._workers:
            for block in blocks:
                yield replace(block, data=b""), encoder(block)
            return
        written = pickle.dumps(encoder)
        for connection in self._workers:
            self._talk(connection, "send_bytes", written)
        waiting: dict[int, Any] = {}
        under_way: dict[Connection, deque[int]] = {connection: deque() for connection in self._workers}
        sent: dict[int, Block] = {}
        source = enumerate(blocks)
        wanted = 0
        while True:
            while len(sent) < (_AHEAD + 1) * len(self._workers):
                connection = min(under_way, key=lambda one: len(under_way[one]))
                if len(under_way[connection]) >= _AHEAD or (following := next(source, None)) is None:
                    break
                number, block = following
                self._talk(connection, "send", block)
                under_way[connection].append(number)
                sent[number] = replace(block, data=b"")
            if not sent:
                return
            while wanted not in waiting:
                for ready in self._ready([one for one, numbers in under_way.items() if numbers]):
                    waiting[under_way[ready].popleft()] = self._talk(ready, "recv")
            result = waiting.pop(wanted)
            if isinstance(result, Exception):
                raise result
            yield sent.pop(wanted), result
            wanted += 1

    def _ready(self, connections: list[Connection]) -> list[Connection]:
        """Those from which something can be read. A process may end without its connection: what it started has it."""
        while not (ready := wait(connections, _LOOK_S)):
            for connection in connections:
                if self._workers[connection].poll() is not None and not connection.poll():
                    raise self._ended(connection)
        return [one for one in ready if isinstance(one, Connection)]

    def _talk(self, connection: Connection, what: str, *message: Any) -> Any:
        try:
            return getattr(connection, what)(*message)
        except (EOFError, OSError) as error:
            raise self._ended(connection) from error

    def _ended(self, connection: Connection) -> DataError:
        process = self._workers[connection]
        try:
            code: int | None = process.wait(_END_S)
        except subprocess.TimeoutExpired:
            code = None
        return DataError(
            f"packing process {process.pid} ended by itself (exit code {code}); it may have been killed for memory: "
            "look at the kernel log, take fewer workers, and go on with --resume"
        )

    def close(self) -> None:
        """End the processes."""
        for connection in self._workers:
            connection.close()
        for process in self._workers.values():
            try:
                process.wait(_END_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._workers.clear()

    def __enter__(self) -> PackWorkers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def serve() -> None:
    """A worker process: encode blocks until the parent closes the connection."""
    ignore_stop_signals()  # the parent decides; when it is gone, this process ends
    connection = Connection(int(sys.argv[1]))
    os.set_inheritable(connection.fileno(), False)
    try:
        encoder: BlockEncoder = pickle.loads(connection.recv_bytes())
    except (EOFError, OSError):
        return  # there is nothing to do
    blocks: queue.SimpleQueue[Block] = queue.SimpleQueue()
    # A thread takes blocks in while this one works: else both sides could wait for each other to read.
    threading.Thread(target=_receive, args=(connection, blocks), daemon=True).start()
    while True:
        block = blocks.get()
        try:
            result: Any = encoder(block)
        except ModlibError as error:
            result = error
        except Exception:
            result = RuntimeError(f"in a packing process:\n{traceback.format_exc()}")
        try:
            connection.send(result)
        except OSError:
            os._exit(0)


def _receive(connection: Connection, blocks: queue.SimpleQueue[Block]) -> None:
    try:
        while True:
            blocks.put(connection.recv())
    except (EOFError, OSError):
        os._exit(0)  # in the midst of a block, too: nobody waits for it
