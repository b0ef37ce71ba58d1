"""What evaluators share: held-out samples, when to look at them, and how the ranks divide them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from torch import nn

from modlib.data.batches.batch import Batch, map_tensors
from modlib.data.batches.loader_workers import load_batch
from modlib.data.datasets.dataset import Watched
from modlib.runtime.errors import ConfigError
from modlib.runtime.metric_names import name_problem
from modlib.training.known_ids import require_known_ids
from modlib.training.parts import Parts


class HeldOut:
    """The held-out samples of one evaluator.

    Args:
        name: The evaluator's, for its metrics.
        dataset: Returns the samples.
        every: Steps between evaluations.
        limit: (parameter, its value, what it counts): so many samples over all ranks; None takes all.
        micro_batch_size: Samples per rank per forward; None takes the run's.

    Raises:
        ConfigError: A number below 1, or a name that metrics cannot have.
    """

    def __init__(
        self,
        name: str,
        dataset: Callable[[], Any],
        every: int,
        limit: tuple[str, int | None, str],
        micro_batch_size: int | None,
    ) -> None:
        parameter, most, things = limit
        problems = [problem] if (problem := name_problem("name", name)) else []
        if every < 1:
            problems.append(f"every ({every}) must be at least 1 step; to never evaluate leave it out")
        if most is not None and most < 1:
            problems.append(f"{parameter} ({most}) must be at least 1; use None for all {things}")
        if micro_batch_size is not None and micro_batch_size < 1:
            problems.append(f"micro_batch_size ({micro_batch_size}) must be at least 1; use None for the run's")
        if problems:
            raise ConfigError(problems)
        self.name, self.every, self.most, self.micro_batch_size = name, every, most, micro_batch_size
        self.dataset = dataset()

    def due(self, step: int, num_steps: int) -> bool:
        """Whether to evaluate after optimizer step `step`."""
        return step % self.every == 0 or step == num_steps

    def check_model(self, model: Any) -> None:
        """Refuse a model that this evaluator cannot evaluate; asked before training, of a model on meta.

        Raises:
            ConfigError: It cannot.
        """

    def batches(
        self, parts: Parts, collate: Callable[..., Any], micro_batch_size: int, samples: Any = None
    ) -> Iterator[Batch]:
        """This rank's share, on its device.

        Every rank gets the same number of equally shaped batches; the targets of what is missing are masked.

        Args:
            parts: The loss, for its ignore_index, and the world.
            collate: Makes (inputs, targets) from samples.
            micro_batch_size: The run's, used when this evaluator has none of its own.
            samples: Read in the place of the dataset's; made of its files.

        Raises:
            DataError: The data was changed, or holds a token id that the model does not have.
        """
        if isinstance(self.dataset, Watched):
            self.dataset.check_unchanged()
        micro, world = self.micro_batch_size or micro_batch_size, parts.world
        source = self.dataset if samples is None else samples
        available = len(source)
        wanted = min(available, self.most or available)
        for number in range(math.ceil(wanted / (micro * world.size))):
            start = (number * world.size + world.rank) * micro
            present = max(0, min(micro, wanted - start))
            indices = [(start + i) * available // wanted if i < present else 0 for i in range(micro)]
            inputs, targets = load_batch(source, collate, np.array(indices, np.int64))
            if present < micro:
                targets = targets.clone()
                targets[present:] = parts.loss.ignore_index
            require_known_ids(parts, inputs, targets, "an evaluation")
            yield map_tensors(parts.to_device, inputs), parts.to_device(targets)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Dropout is off inside; training mode is restored."""
    model.eval()
    try:
        yield
    finally:
        model.train()
