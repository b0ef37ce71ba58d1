"""A run as plain lines: what a cluster's log file holds."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from modlib.tracking.lines import Clock, Lines, format_value, printable, split_evaluations
from modlib.tracking.messages import CheckpointSaved, MetricsLogged, Notice, RunEnded, RunStarted, StepDone, TextLogged

TRAINING = {
    "train/loss": 7.123456,
    "train/lr": 3e-4,
    "train/grad_norm": 1.23456,
    "throughput/tokens_per_s": 12345.6,
    "throughput/mfu": 0.3412,
    "throughput/data_wait": 0.0031,
    "memory/peak_gib": 0.9123,
}
EVALUATION = {
    "val/validation/loss": 4.0,
    "val/validation/perplexity": 54.598,
    "val/validation/bits_per_byte": 1.9,
}


@pytest.fixture(autouse=True)
def _utc(monkeypatch: pytest.MonkeyPatch) -> object:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def test_a_whole_run_in_lines() -> None:
    lines, start = Lines(), 1767225600.0  # 2026-01-01 00:00:00 UTC
    shown: list[str] = []
    for message, now in [
        (RunStarted("quickstart-1a2b", Path("runs/q"), 1, 0, 30, 4096), start),
        (StepDone(1), start + 1),
        (MetricsLogged(10, 40960, start + 10, 1, TRAINING), start + 10),
        (MetricsLogged(20, 81920, start + 30, 1, TRAINING), start + 30),
        (MetricsLogged(20, 81920, start + 31, 1, EVALUATION), start + 31),
        (CheckpointSaved(20, Path("runs/q/checkpoints/step-00000020"), 0.41, 50_000_000), start + 32),
        (Notice("two ranks left", "warning"), start + 33),
        (TextLogged(20, "sample", "def f():\n\treturn \x1b[31m1"), start + 34),
        (RunEnded("stopped by SIGTERM", 20), start + 35),
    ]:
        shown += lines.of(message, now)
    metrics = "loss=7.1235 lr=3.00e-04 grad_norm=1.235 tokens/s=12.3k mfu=34.1% data_wait=0.3% memory=0.91GiB"
    assert shown == [
        "2026-01-01 00:00:00 start run=quickstart-1a2b attempt=1 steps=30",
        f"2026-01-01 00:00:10 train step=10/30 {metrics} elapsed=10s eta=?",
        f"2026-01-01 00:00:30 train step=20/30 {metrics} elapsed=30s eta=20s",
        "2026-01-01 00:00:31 eval step=20/30 name=validation loss=4.0000 perplexity=54.6 bits_per_byte=1.9000",
        "2026-01-01 00:00:32 checkpoint step=20 size=47.7MiB took=0.41s path=runs/q/checkpoints/step-00000020",
        "2026-01-01 00:00:33 warning: two ranks left",
        "2026-01-01 00:00:34 sample step=20 text:",
        "    def f():",
        "    \treturn �[31m1",
        "2026-01-01 00:00:35 end reason='stopped by SIGTERM' step=20/30 elapsed=35s",
    ]


def test_a_resumed_run_says_where_it_goes_on() -> None:
    (line,) = Lines().of(RunStarted("r", Path("r"), 3, 20, 30, 4096), 0.0)
    assert line.endswith("start run=r attempt=3 steps=30 resumed_from_step=20")


def test_training_and_evaluation_in_one_message_are_two_lines() -> None:
    lines = Lines().of(MetricsLogged(1, 1, 0.0, 1, TRAINING | EVALUATION), 0.0)
    assert [line.split()[2] for line in lines] == ["train", "eval"]


def test_evaluations_are_told_apart_by_name() -> None:
    training, evaluations = split_evaluations({"train/loss": 1.0, "val/a/loss": 2.0, "val/b/loss": 3.0, "val/x": 4.0})
    assert training == {"train/loss": 1.0, "val/x": 4.0}
    assert evaluations == {"a": {"loss": 2.0}, "b": {"loss": 3.0}}


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("train/loss", float("nan"), "nan"),
        ("val/v/perplexity", float("inf"), "inf"),
        ("val/v/perplexity", 50257.3, "5.026e+04"),
        ("train/lr", 0.0, "0.00e+00"),
        ("user/anything", 12.3456, "12.35"),
    ],
)
def test_values_in_words(name: str, value: float, text: str) -> None:
    assert format_value(name, value) == text


def test_the_pace_leaves_out_the_first_step_of_this_attempt() -> None:
    clock = Clock(start_step=100, num_steps=200, started=0.0)
    assert clock.step == 100
    clock.saw(100, 1.0)  # the checkpoint's step is not a step of this attempt
    clock.saw(101, 60.0)  # compiled first
    assert clock.eta(60.0) is None
    clock.saw(111, 80.0)  # 2 s per step
    assert clock.step == 111
    assert clock.eta(80.0) == pytest.approx(178.0)
    assert clock.eta(90.0) == pytest.approx(168.0)
    clock.saw(105, 90.0)
    assert clock.step == 111
    assert clock.elapsed(90.0) == 90.0


def test_control_characters_do_not_reach_the_terminal() -> None:
    assert printable("a\tb\nc\x00\x1b]0;x\x07é\u202e") == "a\tb\nc��]0;x�é�"
