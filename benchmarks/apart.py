"""Variants in processes of their own, where what one imports, prints or leaves running does not touch the others."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any

_PR_SET_PDEATHSIG = 1


class Apart:
    """A process that prepares something once, and does it whenever this is called.

    In between it is stopped: threads that some of them have running ahead would slow the others down.

    Args:
        log: File for what the process prints.
        prepare: Called in the process with the arguments; returns what to do.

    Raises:
        ImportError: prepare imports something that is not installed.
    """

    def __init__(self, log: Path, prepare: Callable[..., Callable[[], object]], *arguments: object) -> None:
        context = multiprocessing.get_context("spawn")
        self._log = log
        self._pipe, other = context.Pipe()
        self._process = context.Process(target=_serve, args=(other, log, prepare, arguments))
        self._process.start()
        other.close()
        self._answer()

    def __enter__(self) -> Apart:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._process.kill()  # some have threads that go on until an epoch ends
        self._process.join()

    def __call__(self) -> Any:
        self._signal(signal.SIGCONT)
        self._pipe.send(None)
        return self._answer()

    def _signal(self, number: signal.Signals) -> None:
        assert self._process.pid is not None
        os.kill(self._process.pid, number)

    def _answer(self) -> Any:
        try:
            value, error = self._pipe.recv()
        except EOFError:
            raise SystemExit(f"a variant's process ended; it printed\n{self._log.read_text()[-2000:]}") from None
        if isinstance(error, ImportError):
            raise error
        if error:
            raise SystemExit(f"{error}\n{self._log.read_text()[-2000:]}")
        self._signal(signal.SIGSTOP)
        return value


def _serve(
    pipe: Connection, log: Path, prepare: Callable[..., Callable[[], object]], arguments: tuple[Any, ...]
) -> None:
    number = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.dup2(number, 1)
    os.dup2(number, 2)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # who is stopped does not see that its parent is gone
    multiprocessing.set_start_method(None, force=True)  # the system's own again, not spawn
    try:
        run = prepare(*arguments)
        pipe.send((None, None))
        while True:
            pipe.recv()
            pipe.send((run(), None))
    except ImportError as error:
        pipe.send((None, ImportError(str(error))))
    except EOFError:
        pass
    except BaseException:
        pipe.send((None, traceback.format_exc()))
