"""The broker: hands every message to every subscriber, and keeps subscribers from ever disturbing training."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from modlib.runtime.units import counted
from modlib.tracking.messages import Message, RunEnded, StepDone, without_secrets

logger = logging.getLogger("modlib")

STEP_INTERVAL_S = 0.5  # how often a subscriber sees the newest StepDone


class Subscriber(Protocol):
    """Whatever receives messages.

    Optional attributes: `synchronous = True` runs `receive` inside `publish` (for what must be on disk when publish
    returns); `receives` is the tuple of message types wanted (default: all but StepDone); `close_s` is how long `close`
    may take where that is longer than others get, and `patient_close_s` at the end of a finished run;
    `once_per_run = True` says that it has files of its own in the run folder, so that a second of its kind is refused;
    `waiting` is the number of records that it could not write yet and tries again at every message.
    """

    def receive(self, message: Any) -> None:
        """Take one message. May raise or be slow: training goes on."""

    def close(self) -> None:
        """No message follows."""


@dataclass
class Missed:
    """What a subscriber did not get: messages it failed on, and messages dropped because it was too slow."""

    failed: int = 0
    dropped: int = 0

    def __bool__(self) -> bool:
        return bool(self.failed or self.dropped)

    def __str__(self) -> str:
        failed = f"{counted(self.failed, 'message')} could not be recorded" if self.failed else ""
        dropped = f"{counted(self.dropped, 'message')} came too fast" if self.dropped else ""
        return ", ".join(filter(None, [failed, dropped]))


class Broker:
    """Publishes messages to subscribers.

    Each subscriber has its own daemon thread and bounded queue, so one that raises, blocks or is slow loses only its
    own messages: it is named in one warning, and what it lost is counted. Synchronous subscribers (metrics.jsonl) run
    inside `publish`; their errors are caught, too.

    Args:
        subscribers: Ready subscribers.
        capacity: Messages kept per subscriber before new ones are dropped.
        stall_s: A subscriber busy with one message for longer is reported as blocked.
    """

    def __init__(
        self, subscribers: Iterable[Subscriber] = (), *, capacity: int = 10_000, stall_s: float = 30.0
    ) -> None:
        self._closed = self._finished = False
        self._synchronous: list[_Direct] = []
        self._queued: list[_Queued] = []
        for subscriber in subscribers:
            if getattr(subscriber, "synchronous", False):
                self._synchronous.append(_Direct(subscriber))
            else:
                self._queued.append(_Queued(subscriber, capacity, stall_s))

    @classmethod
    def of(cls, makers: Iterable[Callable[..., Subscriber]], *, run_path: Path) -> Broker:
        """Call each maker (a class, as gin gives it) with the run folder; one that fails is left out with a warning."""
        subscribers = []
        for maker in makers:
            try:
                subscribers.append(maker(run_path=run_path))
            except Exception as error:
                name = getattr(maker, "__name__", type(maker).__name__)
                logger.warning(
                    "subscriber %s could not be set up (%s); training goes on without it", name, _in_words(error)
                )
        return cls(subscribers)

    def publish(self, message: Message) -> None:
        """Hand the message, without secrets, to every subscriber. Never raises, never waits for a queued subscriber."""
        if self._closed:
            return
        message = without_secrets(message)
        self._finished = isinstance(message, RunEnded) and message.reason == "finished"
        for direct in self._synchronous:
            direct.deliver(message)
        for queued in self._queued:
            queued.put(message)

    @property
    def missed(self) -> dict[str, Missed]:
        """Subscriber name -> what it missed, of those that missed something."""
        return {one.name: one.lost for one in (*self._synchronous, *self._queued) if one.lost}

    @property
    def lost_metrics(self) -> int:
        """Lines of metrics that those who write them synchronously could not write; the most of one of them."""
        return max((getattr(one.subscriber, "lost_metrics", 0) for one in self._synchronous), default=0)

    def close(self, timeout_s: float = 10.0) -> None:
        """Let subscribers finish what is queued, for at most `timeout_s` seconds in all, or the longest `close_s`
        (`patient_close_s` after a finished run).

        A hung one is left behind.
        """
        if self._closed:
            return
        self._closed = True
        started = time.monotonic()
        for direct in self._synchronous:
            direct.close()
        for queued in self._queued:
            queued.end()
        for queued in self._queued:
            own_s = queued.patient_close_s if self._finished else queued.close_s
            queued.join(started, max(timeout_s, own_s))


class _Delivery:
    """A subscriber, what it lost, and the two warnings (failed, blocked) that are given once each."""

    def __init__(self, subscriber: Subscriber) -> None:
        self.subscriber = subscriber
        self.name = type(subscriber).__name__
        self.missed = Missed()
        self.receives: tuple[type, ...] | None = getattr(subscriber, "receives", None)
        self._warned: set[str] = set()

    @property
    def lost(self) -> Missed:
        """What it missed for good: what waits counts, what was written at another try does not."""
        waiting = getattr(self.subscriber, "waiting", None)
        return self.missed if waiting is None else replace(self.missed, failed=waiting)

    def wants(self, message: Message) -> bool:
        if self.receives is None:
            return not isinstance(message, StepDone)
        return isinstance(message, self.receives)

    def call(self, message: Message) -> None:
        try:
            self.subscriber.receive(message)
        except (Exception, SystemExit) as error:  # SystemExit: rich at a broken pipe
            self._failed(type(message).__name__, error)

    def call_close(self) -> None:
        try:
            self.subscriber.close()
        except (Exception, SystemExit) as error:
            self._failed("close", error)

    def _failed(self, what: str, error: BaseException) -> None:
        self.missed.failed += 1
        kept = hasattr(self.subscriber, "waiting")
        then = "keeps it for the next try" if kept else "misses this message and gets the next"
        self.warn_once(
            "failed",
            f"subscriber {self.name} failed on {what} ({_in_words(error)}); training goes on, {self.name} {then}; "
            "further failures are only counted",
        )

    def warn_once(self, kind: str, text: str) -> None:
        if kind not in self._warned:
            self._warned.add(kind)
            logger.warning(text)


class _Direct(_Delivery):
    """Delivery inside publish, one message at a time."""

    def __init__(self, subscriber: Subscriber) -> None:
        super().__init__(subscriber)
        self._lock = threading.RLock()

    def deliver(self, message: Message) -> None:
        if self.wants(message):
            with self._lock:
                self.call(message)

    def close(self) -> None:
        with self._lock:
            self.call_close()


class _Queued(_Delivery):
    """Delivery on the subscriber's own daemon thread."""

    def __init__(self, subscriber: Subscriber, capacity: int, stall_s: float) -> None:
        super().__init__(subscriber)
        self.close_s: float = getattr(subscriber, "close_s", 0.0)
        self.patient_close_s: float = getattr(subscriber, "patient_close_s", self.close_s)
        self._capacity = capacity
        self._stall_s = stall_s
        self._messages: deque[Message] = deque()
        self._changed = threading.Condition()
        self._newest_step: StepDone | None = None  # written by publish, read by the thread
        self._seen_step: StepDone | None = None
        self._next_step_at = 0.0
        self._steps_wanted = self.wants(StepDone(0))
        self._ending = False
        self._busy_since: float | None = None
        self._thread = threading.Thread(target=self._run, name=f"modlib {self.name}", daemon=True)
        self._thread.start()

    def put(self, message: Message) -> None:
        if isinstance(message, StepDone):
            if self._steps_wanted:
                self._newest_step = message  # no lock and no wake-up: this runs every step
            return
        if not self.wants(message):
            return
        with self._changed:
            full = len(self._messages) >= self._capacity
            if full:
                self.missed.dropped += 1
            else:
                self._messages.append(message)
                self._changed.notify()
        busy_since = self._busy_since
        stalled = busy_since is not None and time.monotonic() - busy_since > self._stall_s
        if full:
            self._blocked(f"has {self._capacity} messages waiting and gets no more until it catches up")
        elif stalled:
            self._blocked(f"has been busy with one message for more than {self._stall_s:g} s")

    def _blocked(self, how: str) -> None:
        self.warn_once(
            "blocked",
            f"subscriber {self.name} {how}; training goes on without waiting for it, what it misses is only counted",
        )

    def end(self) -> None:
        with self._changed:
            self._ending = True
            self._changed.notify()

    def join(self, started: float, timeout_s: float) -> None:
        self._thread.join(max(0.0, started + timeout_s - time.monotonic()))
        if self._thread.is_alive():
            with self._changed:
                left = len(self._messages)
                self._messages.clear()
                self.missed.dropped += left
            self._blocked(f"did not end within {timeout_s:g} s ({left} messages given up)")

    def _run(self) -> None:
        while (message := self._next()) is not None:
            self._busy_since = time.monotonic()
            self.call(message)
            self._busy_since = None
        self._busy_since = time.monotonic()
        self.call_close()
        self._busy_since = None

    def _next(self) -> Message | None:
        """The next message in order, or the newest step when nothing else waits; None at the end."""
        with self._changed:
            while True:
                if self._messages:
                    return self._messages.popleft()
                now = time.monotonic()
                if (step := self._newest_step) is not self._seen_step and (self._ending or now >= self._next_step_at):
                    self._seen_step, self._next_step_at = step, now + STEP_INTERVAL_S
                    return step
                if self._ending:
                    return None
                self._changed.wait(STEP_INTERVAL_S if self._steps_wanted else None)


def _in_words(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
