"""Evaluation: token-weighted loss over held-out windows."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from modlib.components import component
from modlib.data.batch import Batch, Inputs, map_tensors
from modlib.runtime.errors import ConfigError
from modlib.runtime.units import bits_per_byte, perplexity
from modlib.training.parts import Parts, sum_over_ranks


@component("evaluator", "default", name="Evaluator", not_science=("every",))
class Evaluator:
    """Loss, perplexity and bits per byte over the windows of one dataset, in order.

    Give several of a kind by scopes: `train.evaluators = [@val/Evaluator, @code/Evaluator]`.

    Args:
        name: Metrics are logged as `val/<name>/loss`, `val/<name>/perplexity` and `val/<name>/bits_per_byte`, the last
            where the data knows its bytes per token. Of a sum of losses each term is logged too.
        accuracy: Whether `val/<name>/accuracy` is logged, the share of targets (0 to 1) that the model holds
            most likely.
        dataset: Returns the held-out windows.
        every: Steps between evaluations; the last step is always evaluated.
        num_sequences: So many windows, over all ranks, spread evenly over the data; None evaluates every window.
        micro_batch_size: Sequences per rank per forward; None takes the run's.

    Raises:
        ConfigError: A number below 1.
    """

    def __init__(
        self,
        *,
        name: str = "validation",
        dataset: Callable[[], Any],
        every: int,
        num_sequences: int | None = None,
        micro_batch_size: int | None = None,
        accuracy: bool = False,
    ) -> None:
        if every < 1:
            raise ConfigError(f"every ({every}) must be at least 1 step; to never evaluate leave it out")
        if num_sequences is not None and num_sequences < 1:
            raise ConfigError(f"num_sequences ({num_sequences}) must be at least 1; use None for all windows")
        self.name = name
        self.every = every
        self.num_sequences = num_sequences
        self.micro_batch_size = micro_batch_size
        self.accuracy = accuracy
        self.dataset = dataset()

    def due(self, step: int, num_steps: int) -> bool:
        """Whether to evaluate after optimizer step `step`."""
        return step % self.every == 0 or step == num_steps

    @torch.no_grad()
    def evaluate(self, parts: Parts, collate: Callable[..., Any], micro_batch_size: int) -> dict[str, float]:
        """The metrics over all windows and ranks; a collective call. Dropout is off, and training mode is restored.

        Args:
            parts: The model and loss.
            collate: Makes (inputs, targets) from windows.
            micro_batch_size: The run's, used when this evaluator has none of its own.
        """
        totals: dict[str, Tensor] = {}
        parts.model.eval()
        try:
            for inputs, targets in self._batches(parts, collate, self.micro_batch_size or micro_batch_size):
                for name, value in _sums(parts, inputs, targets, self.accuracy).items():
                    totals[name] = totals.get(name, 0.0) + value.double()
        finally:
            parts.model.train()
        summed = sum_over_ranks(torch.stack(list(totals.values())), parts.world).tolist()
        tokens, *sums = summed
        means = {name: value / max(tokens, 1.0) for name, value in zip(list(totals)[1:], sums, strict=True)}
        nll = means[getattr(parts.loss, "nll_term", "loss")]
        means["perplexity"] = perplexity(nll)
        if self.dataset.bytes_per_token > 0:  # 0.0 means unknown
            means["bits_per_byte"] = bits_per_byte(nll, self.dataset.bytes_per_token)
        return {f"val/{self.name}/{name}": mean for name, mean in means.items()}

    def _batches(self, parts: Parts, collate: Callable[..., Any], micro: int) -> Iterator[Batch]:
        """This rank's share. Every rank gets the same number of equally shaped batches; what is missing is masked."""
        rank, available = parts.world.rank, len(self.dataset)
        windows = min(available, self.num_sequences or available)
        for number in range(math.ceil(windows / (micro * parts.world.size))):
            start = (number * parts.world.size + rank) * micro
            present = max(0, min(micro, windows - start))
            indices = [(start + i) * available // windows if i < present else 0 for i in range(micro)]
            inputs, targets = collate(self.dataset.__getitems__(indices))
            if present < micro:
                targets = targets.clone()
                targets[present:] = parts.loss.ignore_index
            yield inputs, targets


def _sums(parts: Parts, inputs: Inputs, targets: Tensor, accuracy: bool = False) -> dict[str, Tensor]:
    """Of one micro-batch: unmasked targets first, then the summed loss and, of a sum of losses, each of its terms."""
    inputs, targets = map_tensors(parts.to_device, inputs), parts.to_device(targets)
    loss = parts.loss
    sums = {"tokens": (targets != loss.ignore_index).sum()}
    if hasattr(loss, "of_hidden"):

        def head(hidden: Tensor, weight: Tensor) -> Tensor:
            if accuracy:  # the logits of one sequence at a time
                sequences = zip(hidden.split(1), targets.split(1), strict=True)
                right = [_num_right(F.linear(states, weight), wanted, loss) for states, wanted in sequences]
                sums["accuracy"] = torch.stack(right).sum()
            return cast(Tensor, loss.of_hidden(hidden, weight, targets))

        with parts.in_precision():
            sums["loss"] = parts.model(inputs, head=head)
        return sums
    with parts.in_precision():
        outputs = parts.model(inputs)
    if accuracy:
        logits = outputs if isinstance(outputs, Tensor) else outputs[getattr(loss, "prediction_key", "logits")]
        sums["accuracy"] = _num_right(logits, targets, loss)
    terms = loss.terms(outputs, targets) if hasattr(loss, "terms") else {}
    return sums | {"loss": loss(outputs, targets)} | terms


def _num_right(logits: Tensor, targets: Tensor, loss: Any) -> Tensor:
    """Targets (B, T) that are the most likely token by logits (B, T, V), masked ones left out."""
    return ((logits.argmax(-1) == targets) & (targets != loss.ignore_index)).sum()


def build_evaluators(choices: Any, call: Callable[[Any], Any] = lambda choice: choice()) -> list[Evaluator]:
    """The run's evaluators, from called or uncalled references.

    Args:
        choices: The references, or what they made.
        call: Calls a reference; may explain what it refuses.

    Raises:
        ConfigError: Two evaluators have the same name.
    """
    evaluators = [call(choice) if callable(choice) else choice for choice in choices]
    names = [evaluator.name for evaluator in evaluators]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(
                f"name ('{name}') must differ between evaluators {names}; set e.g. code/Evaluator.name = 'code'"
            )
    return evaluators
