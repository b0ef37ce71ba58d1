"""What a running experiment says. Messages are plain and frozen: subscribers read them on their own threads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from modlib.runtime.secrets import masked, masked_config


@dataclass(frozen=True, slots=True)
class RunStarted:
    """The loop is about to start or to go on.

    Args:
        run_name: Name of the run folder.
        run_path: The run folder.
        attempt: 1 for the first start, one more per restart.
        start_step: Optimizer steps already done; whatever was recorded beyond it is no longer part of the run.
        num_steps: Optimizer steps in the whole run.
        tokens_per_step: Tokens over all ranks and micro-batches.
        config_text: The complete resolved configuration.
        resolved: The same as dotted name -> value.
        info: Anything else worth recording, e.g. versions and device.
        chosen: What was set for this run: on the command line, then its macros, then the rest.
    """

    run_name: str
    run_path: Path
    attempt: int
    start_step: int
    num_steps: int
    tokens_per_step: int
    config_text: str = ""
    resolved: Mapping[str, Any] = field(default_factory=dict)
    info: Mapping[str, Any] = field(default_factory=dict)
    chosen: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class StepDone:
    """One optimizer step is done. Sent every step and cheap: a subscriber sees the newest at most twice per second."""

    step: int


@dataclass(frozen=True, slots=True)
class MetricsLogged:
    """Metrics of one step: one line of metrics.jsonl.

    Args:
        step: Optimizer steps done.
        tokens: Tokens trained on so far, over all ranks.
        time: Unix time in seconds.
        attempt: The attempt that measured them.
        values: Metric name -> plain number. Names are the same for every subscriber, e.g. "train/loss",
            "val/validation/bits_per_byte", "throughput/tokens_per_s".
    """

    step: int
    tokens: int
    time: float
    attempt: int
    values: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class TextLogged:
    """A text worth keeping, e.g. a sample of the model; `tag` says which kind."""

    step: int
    tag: str
    text: str


@dataclass(frozen=True, slots=True)
class CheckpointSaved:
    """A checkpoint is committed and verified on disk."""

    step: int
    path: Path
    seconds: float
    bytes: int


@dataclass(frozen=True, slots=True)
class Notice:
    """A line for the person who watches."""

    text: str
    level: Literal["info", "warning", "error"] = "info"


@dataclass(frozen=True, slots=True)
class RunEnded:
    """This attempt is over.

    Args:
        reason: In words, e.g. "finished" or "stopped by SIGTERM".
        step: Optimizer steps done; equal to RunStarted.num_steps when the run is complete.
        values: The last known metrics.
    """

    reason: str
    step: int
    values: Mapping[str, float] = field(default_factory=dict)


Message = RunStarted | StepDone | MetricsLogged | TextLogged | CheckpointSaved | Notice | RunEnded


def without_secrets(message: Message) -> Message:
    """The message with `***` for every secret: subscribers write to files, terminals and services."""
    if isinstance(message, StepDone):
        return message
    changed: dict[str, Any] = {}
    for one in fields(message):
        value = getattr(message, one.name)
        is_config = one.name == "config_text" and isinstance(value, str)
        found = masked_config(value) if is_config else masked("", value)
        if found != value:
            changed[one.name] = found
    return replace(message, **changed) if changed else message
