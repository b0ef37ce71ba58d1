"""Checkpoints and the run folder that holds them: whether they are there, and of the configuration that it has."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from modlib.checkpointing.names import step_folders, step_name
from modlib.config import Config, Difference, diff, render_diff
from modlib.config.diff import recorded, written_record
from modlib.config.hashing import GLOBAL_BATCH, digits_of
from modlib.runtime.errors import CheckpointError, RunFolderError
from modlib.runtime.run_folder import RunFolder

logger = logging.getLogger("modlib")


class Saved(NamedTuple):
    """A complete checkpoint, as far as its manifest tells."""

    step: int
    path: Path
    extra: Mapping[str, Any]


def newest_saved(run: RunFolder) -> Saved | None:
    """The newest checkpoint with a valid manifest and files of the right sizes; says nothing about the others."""
    from modlib.checkpointing.loading import open_checkpoint  # which needs torch
    from modlib.checkpointing.manifest import DamagedCheckpointError

    for step, path in step_folders(run.checkpoints_path):
        try:
            checkpoint = open_checkpoint(path)
            if checkpoint.step == step:
                return Saved(step, path, checkpoint.extra)
        except DamagedCheckpointError:
            continue
    return None


def known_hashes(run: RunFolder) -> set[str]:
    """Stored hashes of the run's config.gin as it is; none where it was edited by hand, or is missing."""
    record = recorded(run.path) if run.config_path.is_file() else None
    return set() if record is None else {record["hash"], *record.get("same_as", ())}


def require_checkpoints(run: RunFolder) -> None:
    """See that the checkpoints are there that the run has saved; needs no torch.

    Raises:
        CheckpointError: They are gone. What is left of the run, its metrics above all, is not touched.
    """
    step = saved_step(run.read())
    there = step_folders(run.checkpoints_path)
    if step and not there:
        raise CheckpointError(
            f"run '{run.name}' must have its checkpoints to continue from step {step}, but {run.checkpoints_path} has "
            "none; put them back, or start anew: with another --name, or with this run folder moved away"
        )
    if step and there[0][0] < step:
        logger.warning(
            "%s, which run.json names, is gone from %s: the newest is %s",
            step_name(step),
            run.checkpoints_path,
            there[0][1].name,
        )


def saved_step(state: Mapping[str, Any]) -> int:
    """The step that run.json says is saved; 0 where it says none."""
    step = state.get("step", 0)
    return step if isinstance(step, int) else 0


def require_config(config: Config, run: RunFolder, saved: Saved) -> None:
    """See that config.gin of a run is the configuration that its checkpoint was trained with.

    Args:
        config: As it was read from the run folder.
        run: The folder.
        saved: The checkpoint; one without a hash or a global batch is not compared by it.

    Raises:
        RunFolderError: It is another one; with what differs, where that was recorded.
    """
    stored, batch = saved.extra.get("config_hash"), saved.extra.get("global_batch_size")
    same_hash = stored is None or config.is_of(stored) or stored in known_hashes(run)
    same_batch = batch is None or config.resolved.get(GLOBAL_BATCH) in (None, batch)
    if same_hash and same_batch:
        return
    raise RunFolderError(
        f"{run.config_path} (config hash {config.hash[:8]}) must be the configuration that {saved.path.name} was "
        f"trained with ({_digits(stored)}, global batch {batch}), but is another:"
        f"{differences_since(run, stored, config)}\n"
        "    set these values back in it, or start a new run with another --name"
    )


def _digits(stored: object) -> str:
    return f"config hash {digits_of(str(stored))[:8]}"


def differences_since(run: RunFolder, stored: object, config: Config) -> str:
    """What is not as provenance.json has it, where that is the record of the checkpoint's configuration."""
    record = written_record(run.path)
    if record is None or stored not in (record["hash"], *record.get("same_as", ())):
        return " the settings of then are not recorded"
    return f"\n    {indented([one for one in diff(record, config) if not _is_same_batch(one)])}"


def _is_same_batch(one: Difference) -> bool:
    return one.name == GLOBAL_BATCH and one.a_value == "None"  # an earlier modlib left it open


def indented(differences: Sequence[Difference]) -> str:
    return render_diff(differences).replace("\n", "\n    ")
