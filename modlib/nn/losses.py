"""Losses, as sums over targets: the training loop divides by the global count, so no micro-batch weighs too much."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from modlib.components import component
from modlib.runtime.errors import ConfigError

Outputs = Tensor | Mapping[str, Tensor]


class Loss(Protocol):
    """What training asks of a loss. It may also be one of the protocols below."""

    ignore_index: int
    """Targets of this value do not count."""

    def __call__(self, outputs: Any, targets: Tensor, /) -> Tensor:
        """Outputs of the model, targets (B, T) -> the sum over unmasked targets."""
        ...


@runtime_checkable
class FromHidden(Protocol):
    """Computes itself from hidden states and the output matrix, so that all logits are never held at once."""

    def of_hidden(self, hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        """hidden (B, T, dim), weight (V, dim), targets (B, T) -> the sum over unmasked targets."""
        ...


@runtime_checkable
class HasTerms(Protocol):
    """A sum of losses, whose terms are reported one by one."""

    def terms(self, outputs: Any, targets: Tensor) -> dict[str, Tensor]:
        """Name -> summed value."""
        ...


@component("loss", "clm_cross_entropy_loss")
class CLMCrossEntropyLoss:
    """Next-token cross-entropy, summed over the targets that are not masked, in nats and float32.

    Targets are already shifted by the collator. A batch in which every target is masked gives 0 with zero gradients.

    Args:
        ignore_index: Target value of positions that do not count.
        prediction_key: Which output holds the logits, for models with several.

    Source: Radford et al. 2018, GPT, section 3.1, equation 1.
    """

    def __init__(self, ignore_index: int = -100, prediction_key: str = "logits") -> None:
        self.ignore_index = ignore_index
        self.prediction_key = prediction_key

    def __call__(self, outputs: Outputs, targets: Tensor) -> Tensor:
        """Sum of -log p(target).

        Args:
            outputs: Logits (B, T, V) of any floating dtype, alone or under prediction_key.
            targets: (B, T) int64.

        Returns:
            A float32 scalar.
        """
        logits = outputs if isinstance(outputs, Tensor) else outputs[self.prediction_key]
        flat = logits.flatten(0, -2).float()
        return F.cross_entropy(flat, targets.flatten(), ignore_index=self.ignore_index, reduction="sum")


@component("loss", "chunked_clm_cross_entropy_loss")
class ChunkedCLMCrossEntropyLoss(CLMCrossEntropyLoss):
    """The same loss without ever holding all logits: output projection and loss are done chunk by chunk.

    Of the logits (B x T x V, the largest activation of a small model) only one chunk lives at a time, in forward and
    in backward, where each chunk is computed again: the price is one more output projection. Value and gradients are
    those of CLMCrossEntropyLoss up to the order of additions. Needs a model whose forward takes `head`, as GPT2's.

    Args:
        ignore_index: Target value of positions that do not count.
        num_chunks: Pieces, at least 1; memory falls with it. Tokens need not divide by it.

    Raises:
        ConfigError: num_chunks is below 1.

    Source: Liger Kernel, Hsu et al. 2024, section 3.2 (fused linear cross-entropy), here without a kernel.
    """

    def __init__(self, ignore_index: int = -100, num_chunks: int = 8) -> None:
        super().__init__(ignore_index)
        if num_chunks < 1:
            raise ConfigError(f"num_chunks ({num_chunks}) must be at least 1; set it to 8")
        self.num_chunks = num_chunks

    def of_hidden(self, hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        """Sum of -log p(target) from the last hidden states.

        Args:
            hidden: (B, T, dim).
            weight: Output projection (V, dim).
            targets: (B, T) int64.
        """

        def loss(states: Tensor, wanted: Tensor) -> Tensor:
            return super(ChunkedCLMCrossEntropyLoss, self).__call__(F.linear(states, weight), wanted)

        total = hidden.new_zeros((), dtype=torch.float32)
        pieces = hidden.flatten(0, -2).chunk(self.num_chunks), targets.flatten().chunk(self.num_chunks)
        for states, wanted in zip(*pieces, strict=True):
            total = total + checkpoint(loss, states, wanted, use_reentrant=False)
        return total
