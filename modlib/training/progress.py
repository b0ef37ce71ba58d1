"""Where a run stands, and how that gets into and out of a checkpoint."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

from modlib.checkpointing import capture_rng, restore_newest, restore_rng
from modlib.runtime.errors import DataError
from modlib.runtime.seeds import derive, seed_everything
from modlib.training.batches import BatchLayout, batch_layout
from modlib.training.experiment import Experiment
from modlib.training.job import Job
from modlib.training.parts import Parts

logger = logging.getLogger("modlib")


@dataclass
class Progress:
    """How far a run is.

    Args:
        step: Optimizer steps done.
        tokens: Input tokens consumed over all ranks.
        layout: How each step's batch is laid out on this attempt's ranks.
        seq_len: Tokens per sequence.
        data_fingerprint: Identity of the training data.
    """

    step: int
    tokens: int
    layout: BatchLayout
    seq_len: int
    data_fingerprint: str

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
        }


def resume(parts: Parts, experiment: Experiment, dataset: Any, job: Job) -> Progress:
    """Continue from the newest verified checkpoint, or start at step 0.

    On another world size the global batch of the checkpoint is kept, so that the same batches follow; only their
    division into micro-batches changes.

    Raises:
        DataError: The training data is not what the checkpoint was trained on.
        ConfigError: The checkpoint's global batch cannot be divided over this world size.
    """
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
        return Progress(0, 0, wanted, dataset.seq_len, dataset.fingerprint)
    extra = loaded.extra
    if extra["data_fingerprint"] != dataset.fingerprint:
        raise DataError(
            f"data fingerprint ({dataset.fingerprint}) must equal the checkpoint's ({extra['data_fingerprint']}): "
            f"the training data changed since step {extra['step']}. Restore the file, or start a new run with --name"
        )
    layout = wanted
    if extra["global_batch_size"] != wanted.global_batch_size:
        layout = batch_layout(experiment.micro_batch_size, 1, extra["global_batch_size"], job.world.size)
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
    return Progress(extra["step"], extra["tokens"], layout, dataset.seq_len, dataset.fingerprint)


def rank_state() -> dict[str, Any]:
    """What each rank adds to a checkpoint: its random number generators."""
    return {"rng": capture_rng()}
