"""How evenly do the routers of a mixture of experts use their experts?

The balance loss of a set of tokens is E * sum over experts e of f_e * P_e: f_e is the share of (token, layer) pairs
that choose e, P_e the mean probability that they give it. Only P_e has a gradient, and it is a mean over tokens; so
where f_e is known of the whole global batch, the loss of the global batch is a sum over its micro-batches.

Source: Fedus et al. 2022, Switch Transformers, equations 4-6. f_e of the global batch: Qiu et al. 2025, Demons in the
Detail: On Implementing Load Balancing Loss for Training Specialized Mixture-of-Expert Models, section 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor


@dataclass(frozen=True)
class RouterLoss:
    """The balance loss that a model asks for.

    Args:
        num_experts: Experts of each layer.
        top_k: Experts that a token uses.
        coefficient: Its factor in the objective.
    """

    num_experts: int
    top_k: int
    coefficient: float


@dataclass
class Routing:
    """Handed to a model's forward, which leaves here what its routers gave.

    Args:
        calls: Of each forward, the logits of each layer with experts, (B * T, num_experts), and the attention mask
            (B, T), 0 for padding; None where every token counts.
    """

    calls: list[tuple[Sequence[Tensor], Tensor | None]] = field(default_factory=list)


@runtime_checkable
class RoutesTokens(Protocol):
    """A model that may have a balance loss; if so, its forward takes `routing`, and fills it."""

    def router_loss(self) -> RouterLoss | None: ...


@dataclass(frozen=True)
class Usage:
    """Use of the experts by some tokens, summed over layers.

    Args:
        chosen: Times that each expert is chosen, (num_experts,) float64.
        probability: Sum of the probabilities that each expert gets, (num_experts,) float32; has a gradient.
        pairs: Number of (token, layer), a float64 scalar.
    """

    chosen: Tensor
    probability: Tensor
    pairs: Tensor

    def numbers(self) -> Tensor:
        """What is summed over micro-batches and ranks, without a gradient: chosen, then pairs; (num_experts + 1,)."""
        return torch.cat((self.chosen, self.pairs[None]))

    def share(self, numbers: Tensor) -> Tensor:
        """These tokens' part of the balance loss of a larger set that they belong to; a float32 scalar.

        Args:
            numbers: The sum of `numbers()` over the whole set.
        """
        pairs = numbers[-1].clamp(min=1)
        per_expert = numbers[:-1] / pairs * (len(self.chosen) / pairs)
        return (per_expert.float() * self.probability).sum()


def usage(routing: Routing, top_k: int) -> Usage:
    """The use of the experts by all tokens of the forwards that were recorded, each token by top_k experts."""
    logits = routing.calls[0][0]
    num_experts, device = logits[0].shape[-1], logits[0].device
    chosen = torch.zeros(num_experts, dtype=torch.int64, device=device)
    probability = torch.zeros(num_experts, dtype=torch.float32, device=device)
    pairs = torch.zeros((), dtype=torch.int64, device=device)
    for layers, attention_mask in routing.calls:
        counts = torch.ones(len(layers[0]), dtype=torch.int64, device=device)
        if attention_mask is not None:
            counts = (attention_mask.reshape(-1) != 0).to(torch.int64)
        for layer in layers:
            probabilities = torch.softmax(layer, dim=-1, dtype=torch.float32)
            experts = probabilities.detach().topk(top_k, dim=-1).indices
            # whole numbers: atomic additions in any order give the same sum
            chosen = chosen.scatter_add(0, experts.reshape(-1), counts.repeat_interleave(top_k))
            probability = probability + (probabilities * counts[:, None]).sum(0)
            pairs = pairs + counts.sum()
    return Usage(chosen.double(), probability, pairs.double())
