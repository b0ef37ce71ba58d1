"""What a step minimises: from a model and a micro-batch to a sum, a count, and named parts of the sum."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol, cast, runtime_checkable

from torch import Tensor

from modlib.components import component
from modlib.data.batches.batch import Batch
from modlib.nn.losses import FromHidden, Loss

Forward = Callable[..., Any]
"""A model's forward in the run's precision."""


Value = tuple[Tensor, Tensor, Mapping[str, Tensor]]
"""(sum, count, metrics) of one micro-batch.

A step minimises the sum over all micro-batches and ranks, divided by their count. Metrics are other sums over the same,
by name and without a gradient: logged as `train/<name>`, divided like the sum. The same names every time.
"""


@runtime_checkable
class Objective(Protocol):
    """What training asks of `train.objective`, which is called once with the loss of the run.

    It may also be `SeesGlobalBatch`.
    """

    frozen: dict[str, Any]
    """Models that it calls and that are not trained, by name: a teacher, a reference policy. References from the config
    at first; training puts the built ones in their place, in the run's precision, sharded as the model is, in
    evaluation mode and without gradients. Their weights come from themselves, as CheckpointedModel's do."""

    def count(self, batch: Batch) -> Tensor:
        """What a micro-batch adds to the divisor, a scalar. Asked on the CPU, before the forward."""
        ...

    def __call__(self, model: Forward, batch: Batch, /) -> Value:
        """(sum, count, metrics) of a micro-batch, which is on the device; `model` computes in the run's precision."""
        ...


@runtime_checkable
class SeesGlobalBatch(Protocol):
    """An objective that is a sum over micro-batches only where it knows something of the whole global batch."""

    def look(self, model: Forward, batches: Iterator[Batch], num_batches: int, count: Tensor) -> None:
        """Called on every rank before a step's first forward.

        Args:
            model: As for the objective.
            batches: This rank's micro-batches, each copied to the device when it is taken.
            num_batches: How many there are; the same on every rank.
            count: The divisor of the step, a scalar.
        """
        ...


@component("objective", "causal", runtime_args=("loss",))
class CausalObjective:
    """The loss of the run, `train.loss`, of the model's outputs: the default.

    It serves every model whose loss is a function of outputs and targets: next tokens, masked tokens, captions.

    Args:
        loss: Of the run.
    """

    def __init__(self, loss: Loss) -> None:
        self.loss = loss
        self.frozen: dict[str, Any] = {}

    def count(self, batch: Batch) -> Tensor:
        """The unmasked targets."""
        return (batch[1] != self.loss.ignore_index).sum()

    def __call__(self, model: Forward, batch: Batch) -> Value:
        """A loss that never holds all logits is computed inside the model."""
        inputs, targets = batch
        loss = self.loss
        if isinstance(loss, FromHidden):
            total = model(inputs, head=lambda hidden, weight: loss.of_hidden(hidden, weight, targets))
        else:
            total = loss(model(inputs), targets)
        return cast(Tensor, total), self.count(batch), {}
