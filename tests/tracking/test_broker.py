"""A subscriber that raises, blocks, is slow or exits never disturbs the publisher."""

from __future__ import annotations

import json
import logging
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from modlib.tracking.broker import Broker
from modlib.tracking.jsonl import JSONL
from modlib.tracking.messages import MetricsLogged, Notice, RunStarted, StepDone


def metrics(step: int) -> MetricsLogged:
    return MetricsLogged(step, step * 100, 1.5, 1, {"train/loss": 1 / step})


class Recorder:
    """Keeps what it receives."""

    def __init__(self) -> None:
        self.messages: list[Any] = []
        self.threads: set[str] = set()
        self.closed = 0

    def receive(self, message: Any) -> None:
        self.messages.append(message)
        self.threads.add(threading.current_thread().name)

    def close(self) -> None:
        self.closed += 1


class Raising(Recorder):
    """Fails on every message and at the end."""

    def receive(self, message: Any) -> None:
        raise ValueError(f"no thanks, {type(message).__name__}")

    def close(self) -> None:
        raise OSError("not even this")


class Exiting(Recorder):
    """Does what rich does at a broken pipe."""

    def receive(self, message: Any) -> None:
        raise SystemExit(1)


class Hanging(Recorder):
    """Does not come back from its first message until it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.let_go = threading.Event()
        self.entered = threading.Event()

    def receive(self, message: Any) -> None:
        self.entered.set()
        self.let_go.wait(60)
        super().receive(message)


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "modlib"]


def test_every_subscriber_gets_every_message_in_order_on_its_own_thread() -> None:
    first, second = Recorder(), Recorder()
    broker = Broker([first, second])
    sent = [metrics(step) for step in range(1, 500)]
    for message in sent:
        broker.publish(message)
    broker.close()
    assert first.messages == second.messages == sent
    assert first.closed == second.closed == 1
    assert first.threads == {"modlib Recorder"}
    assert broker.missed == {}


def test_a_raising_subscriber_warns_once_and_the_others_get_all(
    caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    good = Recorder()
    broker = Broker([Raising(), good, JSONL(run_path=tmp_path)])
    for step in range(1, 51):
        broker.publish(metrics(step))
    broker.close()
    assert warnings_of(caplog) == [
        "subscriber Raising failed on MetricsLogged (ValueError: no thanks, MetricsLogged); training goes on, Raising "
        "misses this message and gets the next; further failures are only counted"
    ]
    assert len(good.messages) == 50
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 50
    assert broker.missed["Raising"].failed == 51  # and its close


def test_a_subscriber_that_exits_ends_neither_thread_nor_process(caplog: pytest.LogCaptureFixture) -> None:
    broker = Broker([Exiting()])
    broker.publish(metrics(1))
    broker.publish(metrics(2))
    broker.close()
    assert broker.missed["Exiting"].failed == 2
    assert len(warnings_of(caplog)) == 1


def test_a_full_queue_drops_the_newest_counts_them_and_warns_once(caplog: pytest.LogCaptureFixture) -> None:
    hanging = Hanging()
    broker = Broker([hanging], capacity=10)
    broker.publish(metrics(1))
    assert hanging.entered.wait(10)
    start = time.perf_counter()
    for step in range(2, 1002):
        broker.publish(metrics(step))
    assert time.perf_counter() - start < 5  # it never waited for the 60 s
    assert warnings_of(caplog) == [
        "subscriber Hanging has 10 messages waiting and gets no more until it catches up; training goes on without "
        "waiting for it, what it misses is only counted"
    ]
    hanging.let_go.set()
    broker.close()
    assert [message.step for message in hanging.messages] == list(range(1, 12))
    assert broker.missed["Hanging"].dropped == 990


def test_closing_does_not_wait_for_a_hung_subscriber(caplog: pytest.LogCaptureFixture) -> None:
    hanging, good = Hanging(), Recorder()
    broker = Broker([hanging, good])
    for step in range(1, 6):
        broker.publish(metrics(step))
    assert hanging.entered.wait(10)
    start = time.perf_counter()
    broker.close(timeout_s=0.2)
    assert time.perf_counter() - start < 5
    assert len(good.messages) == 5
    assert good.closed == 1
    assert broker.missed["Hanging"].dropped == 4
    assert warnings_of(caplog) == [
        "subscriber Hanging did not end within 0.2 s (4 messages given up); training goes on without waiting for it, "
        "what it misses is only counted"
    ]
    hanging.let_go.set()


def test_a_stalled_subscriber_is_named_while_the_run_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    hanging = Hanging()
    broker = Broker([hanging], stall_s=0.0)
    broker.publish(metrics(1))
    assert hanging.entered.wait(10)
    broker.publish(metrics(2))
    broker.publish(metrics(3))
    assert warnings_of(caplog) == [
        "subscriber Hanging has been busy with one message for more than 0 s; training goes on without waiting for it, "
        "what it misses is only counted"
    ]
    hanging.let_go.set()
    broker.close()
    assert len(hanging.messages) == 3
    assert broker.missed == {}


def test_messages_after_the_end_are_ignored() -> None:
    recorder = Recorder()
    broker = Broker([recorder])
    broker.close()
    broker.publish(metrics(1))
    broker.close()
    assert recorder.messages == []
    assert recorder.closed == 1


def test_steps_go_only_to_those_who_ask_and_only_the_newest(monkeypatch: pytest.MonkeyPatch) -> None:
    class Watching(Recorder):
        receives = (StepDone, Notice)

    watching, other = Watching(), Recorder()
    broker = Broker([watching, other])
    for step in range(1, 100_001):
        broker.publish(StepDone(step))
    broker.publish(Notice("hello"))
    broker.publish(metrics(1))
    broker.close()
    steps = [message.step for message in watching.messages if isinstance(message, StepDone)]
    assert steps[-1] == 100_000
    assert steps == sorted(set(steps))
    assert len(steps) < 1000
    assert Notice("hello") in watching.messages
    assert metrics(1) not in watching.messages
    assert [type(message) for message in other.messages] == [Notice, MetricsLogged]


def test_a_subscriber_that_cannot_be_made_is_left_out(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    def missing(run_path: Path) -> Recorder:
        raise ImportError("No module named 'elsewhere'")

    broker = Broker.of([missing, JSONL], run_path=tmp_path)
    broker.publish(metrics(1))
    broker.close()
    assert warnings_of(caplog) == [
        "subscriber missing could not be set up (ImportError: No module named 'elsewhere'); training goes on without it"
    ]
    assert json.loads((tmp_path / "metrics.jsonl").read_text())["step"] == 1


def test_a_failing_synchronous_subscriber_does_not_reach_the_publisher(caplog: pytest.LogCaptureFixture) -> None:
    class Direct(Raising):
        synchronous = True

    broker = Broker([Direct()])
    broker.publish(RunStarted("r", Path("r"), 1, 0, 10, 100))
    broker.publish(metrics(1))
    broker.close()
    assert broker.missed["Direct"].failed == 3
    assert len(warnings_of(caplog)) == 1
    assert all(record.levelno == logging.WARNING for record in caplog.records)
