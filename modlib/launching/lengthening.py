"""A run that goes on for longer than it was planned for, and one that begins in the middle of another.

Both train from a checkpoint whose schedule was planned for another length, at a step until which the two have the same
rates. What is done here is done under the run's lock, in an order in which a killed process loses nothing: the same
command does it again.
"""

from __future__ import annotations

import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from modlib.checkpointing.commit import write_error
from modlib.checkpointing.names import aside_name, step_folders, step_name
from modlib.checkpointing.run_checkpoints import known_hashes, newest_saved
from modlib.runtime import durable
from modlib.runtime.run_folder import RunFolder
from modlib.runtime.units import counted
from modlib.tracking.jsonl import METRICS_FILE, SAMPLES_FILE, rewind

BEFORE = "before_extension"
HISTORY = ("extended", "branched_from")
"""Fields of run.json, and of provenance.json, that say how a run came to its configuration."""
KEPT_FILES = ("config.gin", "provenance.json", "run.json", METRICS_FILE, SAMPLES_FILE)
OF_METRICS = ("log_every", "metrics_missing")


@dataclass(frozen=True)
class Change:
    """How a run takes up a checkpoint that was planned for another length.

    Args:
        kind: "extended": the run's own; "branched": another run's.
        source: The run that has the checkpoint.
        step: Of the checkpoint.
        done: The newest step that the source has saved.
        from_steps: Length of the source.
        to_steps: Of the run from now on.
        from_hash: The source's configuration, as its hash is stored.
        to_hash: The run's.
    """

    kind: Literal["extended", "branched"]
    source: RunFolder
    step: int
    done: int
    from_steps: int
    to_steps: int
    from_hash: str
    to_hash: str

    @property
    def place(self) -> Path:
        """Where an extended run keeps what it had beyond the step."""
        folder = self.source.path / BEFORE
        numbers = [int(one.name) for one in folder.iterdir() if one.name.isdecimal()] if folder.is_dir() else []
        return folder / f"{max(numbers, default=0) + 1:04d}"

    def text(self) -> str:
        """What happens, in a sentence or two."""
        if self.kind == "branched":
            return (
                f"the run branches from step {self.step} of {self.source.name}, with its data position and schedule, "
                f"and trains to step {self.to_steps}"
            )
        begin = f"run {self.source.name} is extended from {self.from_steps} to {self.to_steps} steps"
        if self.step == self.done:
            return f"{begin}, from its newest checkpoint, of step {self.step}"
        again = f"step {self.done} is" if self.done == self.step + 1 else f"steps {self.step + 1} to {self.done} are"
        return (
            f"{begin}, from the checkpoint of step {self.step}, the newest before its schedule changes: {again} done "
            f"again with the new one; what was there is kept in {self.place}"
        )

    def record(self) -> dict[str, Any]:
        """What run.json says of it."""
        lengths = {"at_step": self.step, "from_steps": self.from_steps, "to_steps": self.to_steps}
        hashes = {"from_hash": self.from_hash, "to_hash": self.to_hash, "time": time.time()}
        if self.kind == "extended":
            return {**lengths, **hashes}
        return {"run": self.source.name, "path": str(self.source.path.absolute()), **lengths, **hashes}


def history_of(run: RunFolder) -> dict[str, Any]:
    """How a run came to its configuration, as run.json tells; empty for one that has what it began with."""
    state = run.read()
    return {name: state[name] for name in HISTORY if name in state}


def stored_hashes(source: RunFolder) -> set[str]:
    """Hashes that checkpoints of a run may have."""
    saved = newest_saved(source)
    stored = None if saved is None else saved.extra.get("config_hash")
    return known_hashes(source) | ({stored} if isinstance(stored, str) else set())


def extend(run: RunFolder, change: Change) -> None:
    """Put the run back to the step, before its new configuration is written; who calls holds the run's lock.

    Raises:
        CheckpointError: The disk does not take it.
    """
    newer = [(step, path) for step, path in step_folders(run.checkpoints_path) if step > change.step]
    before = [one for one in run.read().get("extended", []) if one.get("to_hash") != change.to_hash]
    try:
        if newer:
            _set_aside(run, change.place, newer)
    except OSError as error:
        raise write_error(run.path / BEFORE, error) from error
    run.update(
        extended=[*before, change.record() | {"attempts": run.num_attempts}],
        status="stopped",
        step=change.step,
        num_steps=change.to_steps,
        lost_steps=0,
    )


def _set_aside(run: RunFolder, place: Path, newer: list[tuple[int, Path]]) -> None:
    """Make a folder that is read like a run's, of the run as it was and the checkpoints that it passes over."""
    (place / "checkpoints").mkdir(parents=True)
    for name in KEPT_FILES:
        if (run.path / name).is_file():
            shutil.copy2(run.path / name, place / name)
    for _, path in newer:  # newest first: what is left is always whole from its beginning
        durable.rename(path, place / "checkpoints" / path.name)
    durable.fsync_directory(place / "checkpoints")
    durable.fsync_directory(run.checkpoints_path)


def branch(run: RunFolder, change: Change) -> None:
    """Give a new run the checkpoint, and the metrics until there; who calls holds the new run's lock.

    The checkpoint comes last, after the run's configuration is written: see `branch_checkpoint`.

    Raises:
        CheckpointError: The disk does not take it.
    """
    state = change.source.read()
    kept = {name: state[name] for name in OF_METRICS if name in state}
    run.update(branched_from=change.record(), step=change.step, **kept)
    try:
        for name in (METRICS_FILE, SAMPLES_FILE):
            if (change.source.path / name).is_file():
                shutil.copyfile(change.source.path / name, run.path / name)
                rewind(run.path / name, change.step)
    except OSError as error:
        raise write_error(run.path, error) from error


def branch_checkpoint(run: RunFolder, change: Change) -> None:
    """Make the checkpoint one of the new run: the same files, by further links where that can be, else by copies.

    Raises:
        CheckpointError: The disk does not take it.
    """
    name = step_name(change.step)
    aside = run.checkpoints_path / aside_name("tmp", change.step)
    try:
        shutil.copytree(change.source.checkpoints_path / name, aside, copy_function=_link_or_copy)
        durable.fsync_directory(aside)
        durable.rename(aside, run.checkpoints_path / name)
        durable.fsync_directory(run.checkpoints_path)
    except OSError as error:
        raise write_error(run.checkpoints_path / name, error) from error


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
        descriptor = os.open(target, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def steps_text(steps: list[int]) -> str:
    """Steps of checkpoints, for an error."""
    shown = ", ".join(map(str, steps[:8]))
    return f"{shown} and {counted(len(steps) - 8, 'other')}" if len(steps) > 8 else shown or "none"
