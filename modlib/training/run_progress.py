"""Where a run stands, and how that gets into and out of a checkpoint."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from modlib.checkpointing.loading import restore_newest
from modlib.checkpointing.rng import capture_rng, restore_rng
from modlib.checkpointing.run_checkpoints import Saved, require_checkpoints, require_config
from modlib.data.batches.layout import BatchLayout, batch_layout
from modlib.optim.schedules import built_at
from modlib.runtime.errors import DataError
from modlib.runtime.seeds import derive, seed_everything
from modlib.training.contents import Files, files_of, require_same_files
from modlib.training.experiment import Experiment
from modlib.training.job import Job
from modlib.training.parts import Parts

logger = logging.getLogger("modlib")


@dataclass
class RunProgress:
    """How far a run is.

    Args:
        step: Optimizer steps done.
        tokens: Input tokens consumed over all ranks.
        layout: How each step's batch is laid out on this attempt's ranks.
        seq_len: Tokens per sequence.
        data_fingerprint: Identity of the training data.
        files: Path and SHA-256 of every packed file, by what it is used for.
    """

    step: int
    tokens: int
    layout: BatchLayout
    seq_len: int
    data_fingerprint: str
    files: dict[str, Files]

    def advance(self, step: int) -> None:
        """Count one more optimizer step."""
        self.step = step
        self.tokens += self.layout.global_batch_size * self.seq_len

    def to_json(self) -> dict[str, Any]:
        """What a checkpoint keeps: the position in the data follows from step and global batch size."""
        return {
            "step": self.step,
            "tokens": self.tokens,
            "global_batch_size": self.layout.global_batch_size,
            "world_size": self.layout.world_size,
            "data_fingerprint": self.data_fingerprint,
            "data_files": self.files,
        }


def resume(parts: Parts, experiment: Experiment, data: Mapping[str, Any], job: Job) -> RunProgress:
    """Continue from the newest verified checkpoint, or start at step 0.

    On another world size the global batch of the checkpoint is kept, so that the same batches follow; only their
    division into micro-batches changes. A run that was made longer, or that began with another's checkpoint, follows
    its own schedule from there.

    Args:
        parts: Take the checkpoint's values.
        experiment: The settings.
        data: Every dataset of the run, by its use.
        job: This attempt.

    Raises:
        CheckpointError: The run has saved checkpoints, and they are gone.
        RunFolderError: The checkpoint was trained with another configuration than the run folder has now.
        DataError: The training data, or what it is evaluated on, is not what the checkpoint's attempt read.
        ConfigError: The checkpoint's global batch cannot be divided over this world size.
    """
    dataset, files = data["train"], files_of(data)
    loaded = restore_newest(
        job.run.checkpoints_path,
        model=parts.model,
        optimizer=parts.optimizer,
        scheduler=parts.scheduler,
        group=job.world.control_group,
    )
    wanted = batch_layout(
        experiment.micro_batch_size, experiment.grad_accum_steps, experiment.global_batch_size, job.world.size
    )
    if loaded is None:
        require_checkpoints(job.run)
        return RunProgress(0, 0, wanted, dataset.seq_len, dataset.fingerprint, files)
    extra = loaded.extra
    require_config(job.config, job.run, Saved(loaded.step, loaded.path, extra))
    require_same_files(extra.get("data_files", {}), files, f"the checkpoint of step {extra['step']}")
    if extra["data_fingerprint"] != dataset.fingerprint:
        raise DataError(
            f"data fingerprint ({dataset.fingerprint}) must equal the checkpoint's ({extra['data_fingerprint']}): "
            f"the training data changed since step {extra['step']}. Restore the file, or start a new run with --name"
        )
    if not job.config.is_of(extra.get("config_hash", job.config.identity)):  # it was planned for another length
        parts.scheduler = built_at(experiment.scheduler, parts.optimizer, loaded.step)
    layout = wanted
    if extra["global_batch_size"] != wanted.global_batch_size:
        layout = batch_layout(experiment.micro_batch_size, 1, extra["global_batch_size"], job.world.size)
    if extra["world_size"] != job.world.size:
        logger.info(
            "continuing with the run's global batch of %d: %d sequences x %d accumulation x %d processes",
            layout.global_batch_size, layout.micro_batch_size, layout.grad_accum_steps, layout.world_size,
        )  # fmt: skip
    if loaded.rank_state is not None:
        restore_rng(loaded.rank_state["rng"])
    else:
        logger.info("world size changed from %d to %d: dropout is seeded anew", extra["world_size"], job.world.size)
        seed_everything(derive(experiment.seed, "rank", job.world.rank, "step", extra["step"]))
    logger.info("resumed from step %d", extra["step"])
    return RunProgress(extra["step"], extra["tokens"], layout, dataset.seq_len, dataset.fingerprint, files)


def rank_state() -> dict[str, Any]:
    """What each rank adds to a checkpoint: its random number generators."""
    return {"rng": capture_rng()}
