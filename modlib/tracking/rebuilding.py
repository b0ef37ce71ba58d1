"""A tracker's record of a run, made from the run folder alone: metrics.jsonl, the texts and the configuration."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Any

from modlib.config import Config, load
from modlib.config.diff import recorded
from modlib.config.values import is_literal
from modlib.runtime import durable
from modlib.runtime.errors import ModlibError, RunFolderError
from modlib.runtime.run_folder import RunFolder
from modlib.tracking.broker import Broker
from modlib.tracking.jsonl import METRICS_FILE, SAMPLES_FILE, read_lines
from modlib.tracking.messages import MetricsLogged, RunEnded, RunStarted, TextLogged
from modlib.tracking.tensorboard import TENSORBOARD_FOLDER, TensorBoard
from modlib.tracking.wandb_sent import Counts, Sent, count, read_sent, unsent, write_sent
from modlib.tracking.weights_and_biases import WandB

HEAD = ("step", "tokens", "time", "attempt")
UPLOADING_S = 600.0


class NotSent(ModlibError, RuntimeError):
    """A tracker did not take the whole run."""


def send_to_wandb(run: RunFolder, *, again: bool = False) -> Counts:
    """Send W&B what it has not of a run, as the run's own configuration says; marks in the run folder tell what it has.

    Args:
        run: A run that nobody trains.
        again: Send everything, also what W&B has.

    Returns:
        How much there is; nothing was sent where all of it had been.

    Raises:
        RunFolderError: Somebody trains it, or it has no metrics.
        NotSent: W&B did not take all of it.
    """
    with run.lock():
        last = _last_line(run)
        if again:
            (run.path / "wandb").mkdir(exist_ok=True)
            write_sent(run.path, Sent())
        elif not any(True for _ in unsent(run.path, read_sent(run.path))):
            return count(run.path)
        config = load([run.config_path])
        tracker = WandB(run.path, **_options(config) | {"alerts": False, "finish_timeout_s": UPLOADING_S})
        broker = Broker([tracker])
        broker.publish(_started(run, config, last, start_step=last["step"]))
        if not tracker.records:
            raise NotSent("W&B must be on for a run to be sent there, but WANDB_MODE is disabled; unset WANDB_MODE")
        broker.publish(RunEnded("finished" if run.read().get("status") == "finished" else "stopped", last["step"]))
        broker.close()
        found = count(run.path)
    if found.sent < found.rows:
        raise NotSent(
            f"W&B must have all {found.rows} rows of {run.name}, but has {found.sent} for sure; "
            f"{run.path / 'wandb' / 'process.log'} says why, and the same command sends the rest"
        )
    return found


def rebuild_tensorboard(run: RunFolder) -> int:
    """Write TensorBoard's files of a run anew, in place of those that are there; returns the number of lines.

    Args:
        run: A run that nobody trains.

    Raises:
        RunFolderError: Somebody trains it, or it has no metrics.
    """
    with run.lock():
        last = _last_line(run)
        config = load([run.config_path])
        aside = run.path / f".tb.{secrets.token_hex(4)}.tmp"
        aside.mkdir()
        try:
            rows = _write_tensorboard(aside, run, config, last)
            made, place = aside / TENSORBOARD_FOLDER, run.path / TENSORBOARD_FOLDER
            if not place.exists():
                durable.rename(made, place)
            elif not durable.exchange(made, place):
                durable.rename(place, aside / "before")
                durable.rename(made, place)
            durable.fsync_directory(run.path)
        finally:
            durable.remove_tree(aside)
    return rows


def _write_tensorboard(folder: Path, run: RunFolder, config: Config, last: dict[str, Any]) -> int:
    tracker = TensorBoard(folder)
    rows = 0
    for message in (_started(run, config, last, start_step=0), *_texts(run)):
        tracker.receive(message)
    for line in read_lines(run.path / METRICS_FILE):
        values = {name: value for name, value in line.items() if name not in HEAD}
        tracker.receive(
            MetricsLogged(line["step"], line.get("tokens", 0), line.get("time", 0.0), line.get("attempt", 0), values)
        )
        rows += 1
    tracker.receive(RunEnded("finished", last["step"]))
    tracker.close()
    return rows


def _texts(run: RunFolder) -> list[TextLogged]:
    path = run.path / SAMPLES_FILE
    records = read_lines(path) if path.exists() else ()
    return [TextLogged(one["step"], one["tag"], one["text"]) for one in records if {"tag", "text"} <= set(one)]


def _last_line(run: RunFolder) -> dict[str, Any]:
    path = run.path / METRICS_FILE
    last: dict[str, Any] | None = None
    if path.is_file():
        for line in read_lines(path):
            last = line if last is None or line["step"] >= last["step"] else last
    if last is None:
        raise RunFolderError(f"run ({run.path}) must have metrics in {METRICS_FILE}, and has none; train it first")
    return last


def _started(run: RunFolder, config: Config, last: dict[str, Any], *, start_step: int) -> RunStarted:
    record = recorded(run.path)
    return RunStarted(
        run_name=run.name,
        run_path=run.path,
        attempt=run.num_attempts,
        start_step=start_step,
        num_steps=int(config.resolved["train.num_steps"]),
        tokens_per_step=last.get("tokens", 0) // max(1, last["step"]),
        config_text=config.text,
        resolved=config.resolved,
        chosen=record["chosen"] if record and isinstance(record.get("chosen"), dict) else config.chosen,
    )


def _options(config: Config) -> dict[str, Any]:
    """What the run's configuration says about W&B; nothing where it does not use it."""
    return {
        one.parameter: one.value
        for one in config.settings
        if one.instance.name == "WandB" and not one.is_default and is_literal(one.value)
    }
