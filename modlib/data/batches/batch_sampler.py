"""Which samples belong to which step, rank and micro-batch: arithmetic on the step alone."""

from __future__ import annotations

from fractions import Fraction
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from modlib.components import component
from modlib.data.batches.layout import BatchLayout
from modlib.runtime.errors import ConfigError

Remainder = Literal["carry", "drop", "pad"]


@component(
    "batch_sampler",
    "default",
    runtime_args=("sampler", "layout", "rank"),
)
class BatchSampler:
    """The samples of every step, in the sampler's order.

    A global batch has G = world_size x micro_batch_size x grad_accum_steps samples. Within it, micro-batch a of rank r
    holds micro_batch_size of them from a x world_size x micro_batch_size + r x micro_batch_size. Which samples a step
    has depends on the step and on G alone, so that the three factors may change when a run continues.

    Args:
        remainder: What happens at the end of an epoch, when fewer than G samples are left. "carry": the next epoch's
            first samples fill the batch, so that each sample is seen once per epoch and epochs need not end on a step.
            "drop": they are left out of this epoch, as in each epoch others are where the order changes. "pad": the
            epoch's own first samples fill the batch, and are seen twice in it.
        sampler: Has `indices(start, count)` over all epochs, and the number of samples as its length.
        layout: How the global batch is laid out over ranks and micro-batches.
        rank: This one.

    Raises:
        ConfigError: A number is out of range, or remainder is none of the three.
        DataError: There are fewer samples than one global batch.
    """

    def __init__(
        self,
        *,
        remainder: Remainder = "carry",
        sampler: Any,
        layout: BatchLayout,
        rank: int = 0,
    ) -> None:
        problems = layout.problems(rank)
        if remainder not in ("carry", "drop", "pad"):
            problems.append(f"remainder ({remainder!r}) must be 'carry', 'drop' or 'pad'; choose one of them")
        if problems:
            raise ConfigError(problems)
        layout.require_one_batch(len(sampler))
        self.remainder = remainder
        self.sampler = sampler
        self.layout = layout
        self.rank = rank
        self.num_samples = len(sampler)
        self.global_batch_size = layout.global_batch_size

    @property
    def steps_per_epoch(self) -> Fraction:
        """Optimizer steps of one epoch, exactly; a whole number unless batches are carried over."""
        if self.remainder == "carry":
            return Fraction(self.num_samples, self.global_batch_size)
        return Fraction(self._whole_steps)

    @property
    def _whole_steps(self) -> int:
        """Steps of one epoch that ends on a step."""
        if self.remainder == "drop":
            return self.num_samples // self.global_batch_size
        return -(-self.num_samples // self.global_batch_size)

    def num_steps(self, num_epochs: int) -> int:
        """Whole steps in so many epochs; a last batch that would need one more epoch is not counted."""
        return int(self.steps_per_epoch * num_epochs)

    def num_epochs(self, num_steps: int) -> int:
        """Epochs that so many steps need: the last may be visited in part."""
        return -int(-num_steps // self.steps_per_epoch)

    def epoch(self, step: int) -> int:
        """The epoch in which a step begins; the first is 0."""
        return self._start(step)[0]

    def position(self, step: int) -> int:
        """Samples of its epoch that were visited before a step."""
        return self._start(step)[1]

    def _start(self, step: int) -> tuple[int, int]:
        if self.remainder == "carry":
            return divmod(step * self.global_batch_size, self.num_samples)
        epoch, number = divmod(step, self._whole_steps)
        return epoch, number * self.global_batch_size

    def indices(self, step: int) -> npt.NDArray[np.int64]:
        """This rank's samples of one step, (grad_accum_steps x micro_batch_size,), micro-batch after micro-batch.

        Args:
            step: Steps done before it; the first step is 0.
        """
        micro = self.layout.micro_batch_size
        per_forward, offset = self.layout.world_size * micro, self.rank * micro
        parts = [
            self._part(step, offset + number * per_forward, micro) for number in range(self.layout.grad_accum_steps)
        ]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _part(self, step: int, offset: int, count: int) -> npt.NDArray[np.int64]:
        """The samples that stand at offset..offset+count-1 of a step's global batch."""
        epoch, position = self._start(step)
        first = epoch * self.num_samples
        if self.remainder != "pad" or position + offset + count <= self.num_samples:
            found: npt.NDArray[np.int64] = self.sampler.indices(first + position + offset, count)
            return found
        inside = max(0, min(count, self.num_samples - position - offset))
        again = position + offset + inside - self.num_samples  # a batch is never longer than an epoch
        return np.concatenate(
            [
                self.sampler.indices(first + position + offset, inside),
                self.sampler.indices(first + again, count - inside),
            ]
        )
