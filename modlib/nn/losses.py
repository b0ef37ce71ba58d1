"""Losses, as sums over targets: the training loop divides by the global count, so no micro-batch weighs too much."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from modlib.components import component


@component("loss", "clm_cross_entropy_loss")
class CLMCrossEntropyLoss:
    """Next-token cross-entropy, summed over the targets that are not masked, in nats and float32.

    Targets are already shifted by the collator. A batch in which every target is masked gives 0 with zero gradients.

    Args:
        ignore_index: Target value of positions that do not count.
    """

    def __init__(self, ignore_index: int = -100) -> None:
        self.ignore_index = ignore_index

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Sum of -log p(target).

        Args:
            logits: (B, T, V) of any floating dtype.
            targets: (B, T) int64.

        Returns:
            A float32 scalar.
        """
        flat = logits.flatten(0, -2).float()
        return F.cross_entropy(flat, targets.flatten(), ignore_index=self.ignore_index, reduction="sum")
