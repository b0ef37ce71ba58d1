"""Stop requests: a signal is seen at once, on any rank, whatever the main thread is doing.

A Python signal handler runs only between two steps of the interpreter: a main thread inside a collective does not see
SIGTERM until the collective ends. So the C-level handler's wake-up descriptor is read by a thread, which logs the
signal, starts the grace clock, and ends the process when the grace is over and the main thread has not come back.
"""

from __future__ import annotations

import contextlib
import faulthandler
import logging
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from modlib.runtime.errors import EXIT_INTERRUPTED, EXIT_PREEMPTED
from modlib.runtime.watchdog import write_stacks

logger = logging.getLogger("modlib")

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT, signal.SIGHUP)  # the last: a terminal that is closed
EARLY_WARNING_S = 65.0  # SLURM looks once a minute whom to warn, and warns those whose time comes before the next look
LAST_WORDS_S = 2.0  # how long the last words before a hard exit may take: they write to a disk that may hang


def stop_signals() -> list[signal.Signals]:
    """The signals that ask this process to stop: all of them, but SIGHUP where nohup has it ignored."""
    return [
        number
        for number in STOP_SIGNALS
        if number != signal.SIGHUP or signal.getsignal(signal.SIGHUP) != signal.SIG_IGN
    ]


class StopRequest:
    """Whether this process was asked to stop after saving, by a signal or by `request`.

    The first request counts; later ones are logged. A second SIGINT ends the process at once, with exit code 130. A
    process that has not exited `grace_s` after the first request writes its stacks and exits with code 75.

    Args:
        grace_s: Seconds from SIGTERM or SIGINT to the hard exit; below the time the sender waits before SIGKILL.
        warning_grace_s: Seconds from SIGUSR2, or from `stop_at`, to the hard exit: these come early. None: grace_s.
        stop_at: Unix time at which the process stops by itself, before its time limit; None: never.
        stacks_path: Where the stacks of all threads are written at the hard exit; None: stderr.
        last_words: Called with the reason before a hard exit, for at most 2 s; to leave a record in the run folder.
    """

    def __init__(
        self,
        *,
        grace_s: float = 25.0,
        warning_grace_s: float | None = None,
        stop_at: float | None = None,
        stacks_path: Path | None = None,
        last_words: Callable[[str], None] | None = None,
    ) -> None:
        if grace_s <= 0:
            raise ValueError(f"grace_s ({grace_s:g}) must be greater than 0; 25 fits a KillWait of 30 s")
        self.grace_s = grace_s
        self.warning_grace_s = grace_s if warning_grace_s is None else warning_grace_s
        self._stop_at = None if stop_at is None else time.monotonic() + stop_at - time.time()
        self.stacks_path = stacks_path
        self.last_words = last_words
        self.signal: str | None = None
        self.time: float | None = None
        self.not_installed: str | None = "install() was not called"
        self._pid = os.getpid()
        self._deadline: float | None = None
        self._grace_given_s = 0.0
        self._interrupts = 0
        self._previous: dict[int, Any] = {}
        self._previous_wakeup = -1
        self._reader = self._writer = -1
        self._thread: threading.Thread | None = None

    @property
    def requested(self) -> bool:
        """Whether somebody asked this process to stop."""
        return self.signal is not None

    def install(self) -> StopRequest:
        """Take over the stop signals; does nothing, and says why, on another thread than the main one."""
        global _installed
        if self.not_installed is None:
            return self
        if threading.current_thread() is not threading.main_thread():
            self.not_installed = "signals can be handled on the main thread only"
            logger.warning("stop signals are not handled: %s", self.not_installed)
            return self
        if _installed is not None:
            raise RuntimeError("another StopRequest is installed; uninstall it first")
        self._pid = os.getpid()
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)  # a signal handler must not wait
        self._previous = {number: signal.getsignal(number) for number in stop_signals()}
        self._previous_wakeup = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        for number in self._previous:
            signal.signal(number, self._handle)
        self.not_installed = None
        _installed = self
        self._thread = threading.Thread(target=self._watch, name="modlib-signals", daemon=True)
        self._thread.start()
        return self

    def uninstall(self) -> None:
        """Give the signals back to who had them and stop the grace clock."""
        global _installed
        if self.not_installed is not None or os.getpid() != self._pid:
            return
        for number, previous in self._previous.items():
            signal.signal(number, signal.SIG_DFL if previous is None else previous)
        signal.set_wakeup_fd(self._previous_wakeup)
        self.not_installed = "uninstalled"
        _installed = None
        os.close(self._writer)  # ends the thread
        if self._thread is not None:
            self._thread.join()
        os.close(self._reader)

    def request(self, reason: str) -> None:
        """Ask this process to stop, as a signal would; `reason` is what `signal` says then, e.g. "time limit"."""
        self._note(reason)
        if self.not_installed is None:
            os.write(self._writer, b"\0")  # the thread logs it and starts the grace clock

    def __enter__(self) -> StopRequest:
        return self.install()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.uninstall()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        # Nothing but the note: logging from here could interrupt a write of the same stream.
        if os.getpid() == self._pid and not self._is_early(number):
            self._note(signal.Signals(number).name)

    def _is_early(self, number: int) -> bool:
        """Whether this is SLURM's warning, up to a minute before the time that was asked for."""
        if number != signal.SIGUSR2 or self._stop_at is None:
            return False
        return 0 < self._stop_at - time.monotonic() < EARLY_WARNING_S

    def _note(self, reason: str) -> None:
        if self.signal is None:
            self.signal, self.time = reason, time.time()

    def _watch(self) -> None:
        while True:
            until = self._stop_at if self._deadline is None else self._deadline
            wait_s = None if until is None else max(0.0, until - time.monotonic())
            ready, _, _ = select.select([self._reader], [], [], wait_s)
            if not ready and self._deadline is None:
                self._note("time limit")
                self._received(0)
                continue
            if not ready:
                self._end(EXIT_PREEMPTED, f"{self._grace_given_s:g} s after {self.signal} the process had not stopped")
            numbers = os.read(self._reader, 512)
            if not numbers:
                return
            for number in numbers:
                if number in (0, *STOP_SIGNALS):
                    self._received(number)

    def _received(self, number: int) -> None:
        name = signal.Signals(number).name if number else str(self.signal)
        if self._stop_at is not None and self._is_early(number):
            logger.info("%s: the time limit comes near; stopping in %.0f s", name, self._stop_at - time.monotonic())
            return
        self._interrupts += number == signal.SIGINT
        grace_s = self.warning_grace_s if number in (0, signal.SIGUSR2) else self.grace_s
        deadline = time.monotonic() + grace_s
        if self._deadline is None:
            self._note(name)
            self._deadline, self._grace_given_s = deadline, grace_s
            again = "; Ctrl-C again stops now" if number == signal.SIGINT else ""
            logger.warning("%s: saving and stopping within %g s%s", name, grace_s, again)
        elif self._interrupts >= 2:
            self._end(EXIT_INTERRUPTED, "interrupted twice: stopping now, without saving", stacks=False)
        else:
            logger.warning("%s: already stopping because of %s", name, self.signal)
            self._deadline = min(self._deadline, deadline)  # after a warning comes the real end

    def _end(self, code: int, reason: str, *, stacks: bool = True) -> None:
        """End this process without the main thread, which is stuck or must not go on."""

        def speak() -> None:
            logger.error("%s (exit code %d)", reason, code)
            if stacks:
                self._dump_stacks()
            if self.last_words is not None:
                self.last_words(reason)

        speaker = threading.Thread(target=speak, daemon=True)
        speaker.start()
        speaker.join(LAST_WORDS_S)
        os._exit(code)

    def _dump_stacks(self) -> None:
        if self.stacks_path is None:
            faulthandler.dump_traceback(file=sys.__stderr__ or 2, all_threads=True)
            return
        write_stacks(self.stacks_path)
        logger.error("stacks of all threads: %s", self.stacks_path)


_installed: StopRequest | None = None


def _forget_in_child() -> None:
    """A forked child has the parent's handlers and wake-up descriptor; its signals must not stop the parent."""
    global _installed
    if _installed is None:
        return
    signal.set_wakeup_fd(-1)
    for number in STOP_SIGNALS:
        if signal.getsignal(number) == _installed._handle:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    _installed.not_installed = "forked"
    os.close(_installed._reader)
    os.close(_installed._writer)
    _installed = None


os.register_at_fork(after_in_child=_forget_in_child)


@contextlib.contextmanager
def ignored_in_children() -> Iterator[None]:
    """Start helper processes (data workers, loggers) that stop signals sent to the whole job do not kill.

    The signals are blocked in this thread meanwhile, and the processes it starts inherit that: also a helper that
    installs its own handler is not disturbed. This process misses nothing; the signal is delivered to another thread,
    or at the end of the block. Helpers end when told to by their own means, or by SIGKILL.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
