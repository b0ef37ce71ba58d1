"""Any batch of a run again: it is a pure function of the configuration and the step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from modlib.checkpointing.loading import complete_checkpoints
from modlib.config import Config
from modlib.data.batches.batch import Inputs
from modlib.data.batches.fingerprint import batch_fingerprint
from modlib.data.batches.layout import BatchLayout, batch_layout
from modlib.runtime.errors import ConfigError, DataError
from modlib.runtime.run_folder import RunFolder
from modlib.training.building import build
from modlib.training.data_loading import build_loader
from modlib.training.experiment import Experiment


@dataclass(frozen=True)
class ReplayedBatch:
    """The global batch of one optimizer step, all ranks' sequences in their order.

    Args:
        step: The optimizer step that trained on it; the first is 1.
        epoch: In which it begins; the first is 0.
        samples: Of the dataset, one per sequence.
        ranks: Which rank had each sequence.
        micro_batches: In which of its micro-batches.
        inputs: As the model was fed, and
        targets: as the loss was.
        layout: How it was laid out over the ranks.
        dataset: The training data.
    """

    step: int
    epoch: int
    samples: npt.NDArray[np.int64]
    ranks: npt.NDArray[np.int64]
    micro_batches: npt.NDArray[np.int64]
    inputs: Inputs
    targets: Any
    layout: BatchLayout
    dataset: Any

    @property
    def fingerprint(self) -> str:
        """16 hex digits, equal for equal batches."""
        return batch_fingerprint([(self.inputs, self.targets)])


def replay(
    run: RunFolder, config: Config, experiment: Experiment, step: int, world_size: int | None = None
) -> ReplayedBatch:
    """The batch that a run trained on, or will train on, in one optimizer step. Nothing in the run folder changes.

    Args:
        run: The run; its newest checkpoint says how large the global batch is and what the data was.
        config: The run's.
        experiment: Its settings.
        step: 1 to the run's num_steps.
        world_size: Ranks; None takes the number that the run folder names. It decides which rank has which sequence;
            and how many there are, where neither global_batch_size nor a checkpoint does.

    Raises:
        ConfigError: There is no such step.
        DataError: The data was changed since the newest checkpoint.
    """
    if not 1 <= step <= experiment.num_steps:
        raise ConfigError(f"step ({step}) must be 1 to {experiment.num_steps}, the optimizer steps of {run.path}")
    size = world_size or run.read().get("world_size") or 1
    checkpoint = next(complete_checkpoints(run.checkpoints_path), None)
    extra = {} if checkpoint is None else checkpoint.extra
    dataset = build(config, experiment.dataset)
    before = extra.get("data_fingerprint")
    if before not in (None, dataset.fingerprint):
        raise DataError(
            f"data fingerprint ({dataset.fingerprint}) must equal the checkpoint's ({before}): the training data "
            f"changed since step {extra.get('step')}; restore the file"
        )
    layout = _layout(experiment, extra.get("global_batch_size"), size)
    whole = BatchLayout(layout.global_batch_size, 1, 1)  # one rank that has all sequences, in the sampler's order
    loader = build_loader(experiment, dataset, build(config, experiment.collate), whole, 0)
    with loader:
        ((inputs, targets),) = loader.batch(step - 1)
        samples = loader.indices(step - 1)
        epoch = loader.batch_sampler.epoch(step - 1)
    places = np.arange(layout.global_batch_size)
    per_forward = layout.world_size * layout.micro_batch_size
    return ReplayedBatch(
        step=step,
        epoch=epoch,
        samples=samples,
        ranks=places % per_forward // layout.micro_batch_size,
        micro_batches=places // per_forward,
        inputs=inputs,
        targets=targets,
        layout=layout,
        dataset=dataset,
    )


def _layout(experiment: Experiment, kept: int | None, world_size: int) -> BatchLayout:
    """As `progress.resume` lays it out: a checkpoint's global batch stays."""
    wanted = batch_layout(
        experiment.micro_batch_size, experiment.grad_accum_steps, experiment.global_batch_size, world_size
    )
    if kept in (None, wanted.global_batch_size):
        return wanted
    return batch_layout(experiment.micro_batch_size, 1, kept, world_size)
