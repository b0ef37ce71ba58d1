"""Whether a run folder can be continued: with this configuration, and from checkpoints that are really there."""

from __future__ import annotations

import logging
from typing import Literal, NamedTuple

from modlib.checkpointing.names import step_folders, step_name
from modlib.checkpointing.run_checkpoints import (
    Saved,
    differences_since,
    indented,
    known_hashes,
    newest_saved,
    require_config,
    saved_step,
)
from modlib.config import Config, Difference, diff, load, render_diff
from modlib.config.hashing import digits_of
from modlib.config.length import other_differences
from modlib.launching.identity import with_batch_of
from modlib.runtime.errors import CheckpointError, ConfigError, RunFolderError
from modlib.runtime.run_folder import RunFolder

logger = logging.getLogger("modlib")

Resume = Literal["auto", "never", "must"]
MOST_HASHED_BYTES = 4 << 30  # some seconds; the sizes of a larger checkpoint's files have to do
PLACING = (
    "launch.executor", "Local.num_processes", "Local.threads_per_process",
    "Slurm.nodes", "Slurm.tasks_per_node", "Slurm.gpus_per_node", "Slurm.cpus_per_task",
)  # fmt: skip
"""Settings that change no batch, but on how many ranks, threads or devices it is computed."""


class Continued(NamedTuple):
    """How a configuration goes on with a run.

    Args:
        changed: What differs where it changes no number.
        placing: What differs in where it runs.
        same_as: Stored hashes of the run by earlier rules or code that mean this configuration.
    """

    changed: tuple[Difference, ...] = ()
    placing: tuple[Difference, ...] = ()
    same_as: tuple[str, ...] = ()

    def tell(self) -> None:
        """Say what changed."""
        if self.changed:
            logger.info(
                "this run continues with changed settings that change no number:\n%s", render_diff(self.changed)
            )
        if self.placing:
            logger.info(
                "this run continues with the same batches; rounding, and dropout where there is any, may differ:\n%s",
                render_diff(self.placing),
            )


def require_same(config: Config, run: RunFolder, *, longer: bool = False) -> Continued:
    """Compare a configuration with a run that exists: its config.gin, and the hash in its newest checkpoint.

    Args:
        config: With its global batch.
        run: The run's folder, which need not exist.
        longer: It may differ in length and schedule, which was looked at.

    Raises:
        ConfigError: It is another configuration; or the run's cannot be read.
        RunFolderError: config.gin is missing or not the one that the checkpoint was trained with.
    """
    saved = newest_saved(run)
    stored = None if saved is None else saved.extra.get("config_hash")
    if not run.config_path.is_file():
        if saved is not None and stored is not None:
            _require_of_checkpoint(config, run, saved)
        return Continued()
    try:
        before = with_batch_of(load([run.config_path]), run)
    except ConfigError as error:
        raise ConfigError(
            [
                f"run '{run.name}' exists, but its config cannot be read: start a new run with another --name, or "
                "repair what is named here",
                *error.problems,
            ]
        ) from error
    known = known_hashes(run)
    if saved is not None:
        require_config(before, run, saved)
    differences = diff(before, config)
    if longer and not other_differences(before, config):
        differences = [one for one in differences if one.name not in before.science | config.science]
    elif before.hash != config.hash:
        raise ConfigError(
            f"run '{run.name}' exists with a different config ({run.config_path}):\n    {indented(differences)}\n"
            "    start it as a new run with another --name, or set these values back to continue this one"
        )
    return Continued(
        tuple(one for one in differences if one.name not in PLACING),
        tuple(one for one in differences if one.name in PLACING),
        tuple(sorted((known | ({stored} if isinstance(stored, str) else set())) - {config.identity})),
    )


def _require_of_checkpoint(config: Config, run: RunFolder, saved: Saved) -> None:
    """A run without its config.gin is continued by the configuration of its checkpoint alone."""
    stored = saved.extra["config_hash"]
    if config.is_of(stored):
        logger.warning(
            "%s was missing and is written again: this configuration is the one of %s", run.config_path, saved.path.name
        )
        return
    raise RunFolderError(
        f"config hash ({config.hash[:8]}) must be that of {saved.path.name} of run '{run.name}' "
        f"({digits_of(stored)[:8]}), whose config.gin is missing:{differences_since(run, stored, config)}\n"
        "    put config.gin back or give the settings that the run was started with, or choose another --name"
    )


def is_finished(run: RunFolder, num_steps: int, resume: Resume = "auto") -> bool:
    """Whether a run has nothing left to do: it says so, and its last checkpoint is there, undamaged.

    Args:
        run: The run.
        num_steps: Of the whole run.
        resume: "must" trains again what its last checkpoint had, from the one before.

    Raises:
        CheckpointError: It says so, but its last checkpoint is gone or damaged.
    """
    state = run.read()
    step = saved_step(state)
    if state.get("status") != "finished" or step < num_steps:
        return False
    problem = _damage(run, step)
    if problem is None:
        return True
    if resume == "must":
        logger.warning(
            "run %s was finished at step %d, but %s; what is missing is trained again", run.name, step, problem
        )
        return False
    before = [path.name for at, path in step_folders(run.checkpoints_path) if at < step]
    again = f"train the steps since {before[0]} again with --resume must" if before else "start a new run with --name"
    raise CheckpointError(
        f"run '{run.name}', finished at step {step}, must have an undamaged checkpoint of it, but {problem}; put it "
        f"back, or {again}"
    )


def _damage(run: RunFolder, step: int) -> str | None:
    """What is wrong with a step's checkpoint; its contents are hashed unless they are very large."""
    from modlib.checkpointing.loading import open_checkpoint, verify
    from modlib.checkpointing.manifest import DamagedCheckpointError

    path = run.checkpoints_path / step_name(step)
    if not path.is_dir():
        return f"{path} is gone"
    try:
        files = open_checkpoint(path).manifest.files
    except DamagedCheckpointError as error:
        return str(error)
    if sum(file.size for file in files.values()) > MOST_HASHED_BYTES:
        return None
    return next(iter(verify(path)), None)
