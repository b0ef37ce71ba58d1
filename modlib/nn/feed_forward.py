"""The feed-forward half of a transformer block."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal, get_args

import torch.nn.functional as F
from torch import Tensor, nn

from modlib.runtime.errors import require_choices

Activation = Literal["gelu", "gelu_tanh", "relu", "swiglu"]
ACTIVATIONS: tuple[str, ...] = get_args(Activation)

_FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
    "swiglu": F.silu,
}


def default_ffn_dim(dim: int, activation: str) -> int:
    """Hidden size when none is given: 4 * dim, or for swiglu 8/3 * dim rounded up to a multiple of 256.

    The three matrices of swiglu then hold about as many parameters as the two of the others.

    Source: Touvron et al. 2023, LLaMA, section 2.2 (4096 -> 11008).
    """
    if activation != "swiglu":
        return 4 * dim
    return -(-(8 * dim // 3) // 256) * 256


class FeedForward(nn.Module):
    """down(activation(up(x))), or for swiglu down(silu(gate(x)) * up(x)).

    Args:
        dim: Size of the residual stream.
        ffn_dim: Hidden size.
        activation: "gelu" (exact), "gelu_tanh" (GPT-2's approximation), "relu" or "swiglu".
        bias: Whether the projections have biases.
        dropout: Share of outputs dropped in training.

    Source: Shazeer 2020, GLU Variants Improve Transformer, equation 6 (swiglu).
    """

    def __init__(self, *, dim: int, ffn_dim: int, activation: Activation, bias: bool, dropout: float) -> None:
        require_choices(activation=(activation, Activation))
        super().__init__()
        self.activation = _FUNCTIONS[activation]
        self.dropout = dropout
        self.gate = nn.Linear(dim, ffn_dim, bias=bias) if activation == "swiglu" else None
        self.up = nn.Linear(dim, ffn_dim, bias=bias)
        self.down = nn.Linear(ffn_dim, dim, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map x (..., dim) to (..., dim)."""
        hidden = self.activation(self.up(x)) if self.gate is None else self.activation(self.gate(x)) * self.up(x)
        x = self.down(hidden)
        return F.dropout(x, self.dropout, self.training) if self.dropout else x
