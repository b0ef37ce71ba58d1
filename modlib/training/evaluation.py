"""Evaluation: token-weighted loss over held-out windows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from modlib.components import component
from modlib.data.batches.batch import Inputs
from modlib.nn.losses import FromHidden, HasTerms
from modlib.runtime.errors import ConfigError
from modlib.runtime.units import bits_per_byte, perplexity
from modlib.training.held_out import HeldOut, evaluating
from modlib.training.parts import Parts, sum_over_ranks


@component("evaluator", "default", name="Evaluator", not_science=("every",))
class Evaluator(HeldOut):
    """Loss, perplexity and bits per byte over the windows of one dataset, in order.

    Give several of a kind by scopes: `train.evaluators = [@val/Evaluator, @code/Evaluator]`.

    bits_per_byte is the mean loss per target over the bytes per token of the file: ends of documents count as tokens,
    and a document sees those before it in its window. lm-eval's number is DocumentLikelihood's.

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
        ConfigError: A number below 1, or a name that metrics cannot have.
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
        super().__init__(name, dataset, every, ("num_sequences", num_sequences, "windows"), micro_batch_size)
        self.accuracy = accuracy

    @torch.no_grad()
    def evaluate(self, parts: Parts, collate: Callable[..., Any], micro_batch_size: int) -> dict[str, float]:
        """The metrics over all windows and ranks; a collective call. Dropout is off, and training mode is restored.

        Args:
            parts: The model and loss.
            collate: Makes (inputs, targets) from windows.
            micro_batch_size: The run's, used when this evaluator has none of its own.
        """
        totals: dict[str, Tensor] = {}
        with evaluating(parts.model):
            for inputs, targets in self.batches(parts, collate, micro_batch_size):
                for name, value in _sums(parts, inputs, targets, self.accuracy).items():
                    totals[name] = totals.get(name, 0.0) + value.double()
        summed = sum_over_ranks(torch.stack(list(totals.values())), parts.world).tolist()
        tokens, *sums = summed
        means = {name: value / max(tokens, 1.0) for name, value in zip(list(totals)[1:], sums, strict=True)}
        nll = means[getattr(parts.loss, "nll_term", "loss")]
        means["perplexity"] = perplexity(nll)
        if self.dataset.bytes_per_token > 0:  # 0.0 means unknown
            means["bits_per_byte"] = bits_per_byte(nll, self.dataset.bytes_per_token)
        return {f"val/{self.name}/{name}": mean for name, mean in means.items()}


def _sums(parts: Parts, inputs: Inputs, targets: Tensor, accuracy: bool = False) -> dict[str, Tensor]:
    """Of one micro-batch: unmasked targets first, then the summed loss and, of a sum of losses, each of its terms."""
    loss = parts.loss
    sums = {"tokens": (targets != loss.ignore_index).sum()}
    if isinstance(loss, FromHidden):

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
    terms = loss.terms(outputs, targets) if isinstance(loss, HasTerms) else {}
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
