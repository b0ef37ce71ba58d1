"""Stop requests: a signal is seen at once, on any rank, whatever the main thread is doing.

A Python signal handler runs only between two steps of the interpreter: a main thread inside a collective does not see
SIGTERM until the collective ends. So the C-level handler's wake-up descriptor is read by a thread, which logs the
signal, starts the grace clock where there is one, and ends the process when the grace is over and the main thread has
not come back.
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
from typing import Any, NoReturn

from modlib.runtime.errors import EXIT_INTERRUPTED, EXIT_PREEMPTED, EXIT_STEPS_LOST, StoppedEarly
from modlib.runtime.hard_exit import end_now
from modlib.runtime.kept import what_is_kept
from modlib.runtime.units import format_seconds
from modlib.runtime.watchdog import write_stacks

logger = logging.getLogger("modlib")

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT, signal.SIGHUP)  # the last: a terminal that is closed
LEFT_TO_PARENT = (*STOP_SIGNALS, signal.SIGUSR1)
"""What helper processes ignore: it is sent to all processes of a job, and the parent decides."""
EARLY_WARNING_S = 65.0  # SLURM looks once a minute whom to warn, and warns those whose time comes before the next look
EARLY_END_S = 10.0  # before training there is nothing to save, only to tidy up
STOP_AFTER = "MODLIB_STOP_AFTER"  # the environment variable that names the step to stop after, as if by a signal

Note = Callable[[int, FrameType | None], object]


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
    process that has not exited `grace_s` after the first request writes its stacks and exits: with code 75 when
    nothing that was done is lost, with 7 when steps are.

    One that is `starting` has nothing to save yet: a signal raises StoppedEarly in the main thread, and ends the
    process where that does not come to it. `note_only` ends this.

    Args:
        grace_s: Seconds from SIGTERM, SIGHUP or SIGINT to the hard exit; below the time the sender waits before
            SIGKILL. None: nobody waits, and the process takes the time that it needs.
        warning_grace_s: Seconds from SIGUSR2, or from `stop_at`, to the hard exit: these come early. None: grace_s.
        stop_at: Unix time at which the process stops by itself, before its time limit; None: never.
        stacks_path: Where the stacks of all threads are written at the hard exit; None: stderr.
        last_words: Called with the exit code before a hard exit, for at most 2 s; to leave a record in the run folder.
        starting: Whether training has still to begin.
    """

    def __init__(
        self,
        *,
        grace_s: float | None = None,
        warning_grace_s: float | None = None,
        stop_at: float | None = None,
        stacks_path: Path | None = None,
        last_words: Callable[[int], object] | None = None,
        starting: bool = False,
    ) -> None:
        if grace_s is not None and grace_s <= 0:
            raise ValueError(f"grace_s ({grace_s:g}) must be greater than 0; 25 fits a KillWait of 30 s")
        self.grace_s = grace_s
        self.warning_grace_s = grace_s if warning_grace_s is None else warning_grace_s
        self._stop_at = None if stop_at is None else time.monotonic() + stop_at - time.time()
        self.stacks_path = stacks_path
        self.last_words = last_words
        self.signal: str | None = None
        self.time: float | None = None
        self.interrupts = 0
        self.not_installed: str | None = "install() was not called"
        self.done, self.saved = 0, 0
        """Steps: done so far, and of the newest checkpoint."""
        self._starting, self._is_over = starting, False
        self._last_step: int | None = None
        self._step_began = self._step_s = 0.0
        self._pid = os.getpid()
        self._received_one = self._raised = False
        self._deadline: float | None = None
        self._grace_given_s = 0.0
        self._delegate: Note | None = None
        self._previous: dict[int, Any] = {}
        self._previous_wakeup = -1
        self._reader = self._writer = -1
        self._thread: threading.Thread | None = None

    @property
    def requested(self) -> bool:
        """Whether somebody asked this process to stop."""
        return self.signal is not None

    @property
    def lost(self) -> int:
        """Steps that were done and would be gone if this process ended now."""
        return 0 if self._is_over else max(0, self.done - self.saved)

    def install(self) -> StopRequest:
        """Take over the stop signals, also those that are blocked until now; on another thread than the main one it
        does nothing, and says why.
        """
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
        signal.pthread_sigmask(signal.SIG_UNBLOCK, LEFT_TO_PARENT)  # a launcher starts its ranks with them blocked
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

    def note_only(self) -> None:
        """From here on a signal is noted, for the training loop to see; it interrupts nothing any more."""
        self._starting = False

    def begins(self, step: int) -> None:
        """Say that training goes on from this step, which is saved."""
        self.done = self.saved = step

    def step_begins(self, last_step: int) -> None:
        """Say that a step begins; `last_step` as of `waits_for`."""
        self.waits_for(last_step)
        self._step_began = time.monotonic()

    def waits_for(self, last_step: int) -> None:
        """Say after which step this process stops if it is asked from now on; a request that is there keeps its own."""
        if self.signal is None:  # another thread names the step a moment later
            self._last_step = last_step

    def step_ends(self, step: int) -> None:
        """Say that a step is done."""
        self.done, self._step_s = step, time.monotonic() - self._step_began

    def is_saved(self) -> None:
        """Say that the steps done so far are in a checkpoint."""
        self.saved = self.done

    def over(self) -> None:
        """Say that training has ended: what had to be saved is."""
        self._is_over, self._starting = True, False

    def __enter__(self) -> StopRequest:
        return self.install()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.uninstall()

    def _handle(self, number: int, _: FrameType | None) -> None:
        # Nothing but the note: logging from here could interrupt a write of the same stream.
        if os.getpid() != self._pid or self._is_early(number):
            return
        if self._delegate is not None:
            self._delegate(number, None)
            return
        self._note(signal.Signals(number).name)
        if self._starting and not self._raised:
            self._raised = True
            raise StoppedEarly(str(self.signal))

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
            until = self._deadline if self._received_one else self._stop_at
            wait_s = None if until is None else max(0.0, until - time.monotonic())
            ready, _, _ = select.select([self._reader], [], [], wait_s)
            if not ready and not self._received_one:
                self._note("time limit")
                self._received(0)
                if self._starting:
                    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR2)  # `_handle` raises there
                continue
            if not ready:
                self._end(f"{self._grace_given_s:g} s after {self.signal} the process had not stopped")
            numbers = os.read(self._reader, 512)
            if not numbers:
                return
            for number in numbers:
                if number in (0, *STOP_SIGNALS) and self._delegate is None:
                    self._received(number)

    def _received(self, number: int) -> None:
        name = signal.Signals(number).name if number else str(self.signal)
        if self._stop_at is not None and self._is_early(number):
            logger.info("%s: time limit approaching; stopping in %.0f s", name, self._stop_at - time.monotonic())
            return
        self.interrupts += number == signal.SIGINT
        grace_s = self.warning_grace_s if number in (0, signal.SIGUSR2) else self.grace_s
        if self._starting:
            grace_s = EARLY_END_S
        deadline = None if grace_s is None else time.monotonic() + grace_s
        if not self._received_one:
            self._note(name)
            self._deadline, self._grace_given_s = deadline, grace_s or 0.0
            self._received_one = True
            if not self._starting:  # else who catches StoppedEarly knows what was kept
                logger.warning("%s", self._announcement(name, grace_s, again=number == signal.SIGINT))
        elif self.interrupts >= 2:
            self._end("interrupted twice: stopping now, without saving", interrupted=True)
        elif not self._starting:
            logger.warning("%s: already stopping because of %s", name, self.signal)
            if deadline is not None:  # after a warning comes the real end
                self._deadline = deadline if self._deadline is None else min(self._deadline, deadline)

    def _announcement(self, name: str, grace_s: float | None, *, again: bool) -> str:
        if self._is_over:
            text = f"{name}: the run is ending already"
        else:
            within = "" if grace_s is None else f" within {grace_s:g} s"
            took = f" (a step takes {format_seconds(self._step_s)})" if self._step_s else ""
            after = "" if self._last_step is None else f"{',' if within else ''} after step {self._last_step}{took}"
            text = f"{name}: saving and stopping{within}{after}"
        return f"{text}; Ctrl-C again stops now" if again else text

    def _end(self, reason: str, *, interrupted: bool = False) -> NoReturn:
        """End this process without the main thread, which is stuck or must not go on."""
        if self._starting:
            code, reason = StoppedEarly(str(self.signal)).exit_code, f"{self.signal}: stopped before training began"
        else:
            code = EXIT_INTERRUPTED if interrupted else EXIT_STEPS_LOST if self.lost else EXIT_PREEMPTED
            reason = f"{reason}; {what_is_kept(self.saved, self.lost)}"

        def speak() -> None:
            logger.error("%s (exit code %d)", reason, code)
            if not interrupted and not self._starting:
                self._dump_stacks()
            if self.last_words is not None and not self._is_over:
                self.last_words(code)

        end_now(code, speak)

    def _dump_stacks(self) -> None:
        if self.stacks_path is None:
            faulthandler.dump_traceback(file=sys.__stderr__ or 2, all_threads=True)
            return
        try:
            write_stacks(self.stacks_path)
        except OSError as error:
            logger.error("stacks cannot be written to %s: %s", self.stacks_path, error.strerror)
        else:
            logger.error("stacks of all threads: %s", self.stacks_path)


_installed: StopRequest | None = None


def installed() -> StopRequest | None:
    """The StopRequest that has this process's signals."""
    return _installed


@contextlib.contextmanager
def answered() -> Iterator[StopRequest]:
    """Answer stop signals from a process's first moment on; for its entry point.

    Whoever knows more catches StoppedEarly before this does, or changes what is installed.
    """
    try:
        with StopRequest(starting=True) as stop:
            yield stop
    except StoppedEarly as early:
        print(f"{early}; nothing was changed", file=sys.stderr, flush=True)
        sys.exit(early.exit_code)


@contextlib.contextmanager
def handled_by(note: Note) -> Iterator[None]:
    """Inside the block every stop signal calls `note` on the main thread, and nothing else happens."""
    if _installed is not None:
        before, _installed._delegate = _installed._delegate, note
        try:
            yield
        finally:
            _installed._delegate = before
        return
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {number: signal.signal(number, note) for number in stop_signals()}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


@contextlib.contextmanager
def delayed() -> Iterator[None]:
    """Let a stop signal wait for the end of the block: what is half done inside would be known to nobody."""
    noted: list[int] = []
    try:
        with handled_by(lambda number, _: noted.append(number)):
            yield
    finally:
        if noted:
            os.kill(os.getpid(), noted[0])


def ignore_stop_signals() -> None:
    """In a helper process: leave the signals that are sent to all processes of a job to the parent."""
    signal.set_wakeup_fd(-1)  # inherited by fork: writing to it would wake the parent
    for number in LEFT_TO_PARENT:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, LEFT_TO_PARENT)


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
    """Start processes (data workers, loggers, ranks) that stop signals do not kill: not at all, or not before they have
    handlers of their own.

    The signals are blocked in this thread meanwhile, and the processes it starts inherit that: also a helper that
    installs its own handler is not disturbed. This process misses nothing; the signal is delivered to another thread,
    or at the end of the block. Helpers end when told to by their own means, or by SIGKILL.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, LEFT_TO_PARENT)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
