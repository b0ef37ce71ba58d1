"""No message takes a secret to a subscriber."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from modlib.tracking.broker import Broker
from modlib.tracking.messages import (
    CheckpointSaved,
    MetricsLogged,
    Notice,
    RunEnded,
    RunStarted,
    StepDone,
    TextLogged,
    without_secrets,
)

CANARY = "canary-of-a-variable"


class Keeps:
    """A subscriber that keeps what it gets."""

    receives = (RunStarted, MetricsLogged, TextLogged, CheckpointSaved, Notice, RunEnded)

    def __init__(self) -> None:
        self.got: list[Any] = []

    def receive(self, message: Any) -> None:
        self.got.append(message)

    def close(self) -> None:
        pass


class KeepsAtOnce(Keeps):
    """The same inside of publish."""

    synchronous = True


def messages(secret: str) -> list[Any]:
    resolved = {"A.note": f"see {secret}", "A.api_key": "abc", "A.lr": 0.1, "A.nested": ({"x": [secret]},)}
    return [
        RunStarted("run", Path("runs/run"), 1, 0, 1, 1, f"note = '{secret}'\n", resolved, {"device": secret}),
        MetricsLogged(1, 2, 3.0, 1, {f"val/{secret}/loss": float("nan"), "train/loss": 1.0}),
        TextLogged(1, "sample", f"a\n{secret}\nb"),
        CheckpointSaved(1, Path("x"), 1.0, 1),
        Notice(f"look: {secret}"),
        RunEnded(f"failed: {secret}", 1, {"train/loss": 1.0}),
    ]


def test_nothing_that_is_published_holds_a_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SITE_COOKIE", CANARY)
    subscribers = [Keeps(), KeepsAtOnce()]
    broker = Broker(subscribers)
    for message in messages(CANARY):
        broker.publish(message)
    broker.close()
    for subscriber in subscribers:
        assert str(subscriber.got) == str(messages("***")).replace("'A.api_key': 'abc'", "'A.api_key': '***'")


def test_a_message_without_secrets_is_the_very_same() -> None:
    for message in (StepDone(1), *messages("words")[1:]):
        assert without_secrets(message) is message


def test_a_subscribers_error_is_told_without_the_secret(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    from modlib.runtime.logs import start_logging, stop_logging

    class Raises(KeepsAtOnce):
        def receive(self, message: Any) -> None:
            raise ConnectionError(f"no access with {CANARY}")

    monkeypatch.setenv("SITE_COOKIE", CANARY)
    start_logging(level=logging.INFO)
    try:
        Broker([Raises()]).publish(Notice("x"))
    finally:
        stop_logging()
    assert "subscriber Raises failed on Notice (ConnectionError: no access with ***)" in capsys.readouterr().err
