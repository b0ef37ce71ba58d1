"""Attention that is not only causal: over what a mask shows, and from one sequence to another."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modlib.nn.attention import CausalSelfAttention


class SelfAttention(CausalSelfAttention):
    """Self-attention in which every position sees every other, or what a mask shows; parameters as its parent's."""

    def forward(  # type: ignore[override]  # its mask is of another kind
        self, x: Tensor, mask: Tensor | None = None, *, is_causal: bool = False
    ) -> Tensor:
        """Map x (B, T, dim) to (B, T, dim).

        Args:
            x: (B, T, dim).
            mask: Boolean, broadcastable to (B, H, T, T), True where the query (third axis) sees the key (last axis).
                It is taken as it is: what it shows of the future is seen.
            is_causal: Without a mask, whether a position sees only itself and earlier ones.
        """
        q, k, v = self._project(x, 0)
        return self._attend(q, k, v, is_causal=is_causal and mask is None, mask=mask)


def causal_mask_without_padding(attention_mask: Tensor) -> Tensor:
    """Which keys each query sees: itself, and earlier ones that are not padding.

    A padded position sees itself too, so that no row is empty and softmax gives no NaN.

    Args:
        attention_mask: (B, T), nonzero where a token is real.

    Returns:
        (B, 1, T, T) boolean.
    """
    steps = attention_mask.shape[1]
    itself = torch.eye(steps, dtype=torch.bool, device=attention_mask.device)
    earlier = torch.ones(steps, steps, dtype=torch.bool, device=attention_mask.device).tril(-1)
    return (itself | (earlier & attention_mask.bool()[:, None, :]))[:, None]


class CrossAttention(nn.Module):
    """Multi-head attention from one sequence to all positions of another.

    Args:
        dim: Size of the querying sequence's residual stream.
        context_dim: Size of the values of the sequence that is looked at.
        num_heads: Heads; divides dim.
        bias: Whether the projections have biases.
        dropout: Share of attention weights, and of outputs, dropped in training; never in eval.

    Source: Vaswani et al. 2017, Attention Is All You Need, section 3.2.3 (encoder-decoder attention).
    """

    def __init__(self, *, dim: int, context_dim: int, num_heads: int, bias: bool, dropout: float) -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.dropout = num_heads, dim // num_heads, dropout
        self.query = nn.Linear(dim, dim, bias=bias)
        self.key_value = nn.Linear(context_dim, 2 * dim, bias=bias)
        self.out = nn.Linear(dim, dim, bias=bias)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """Attend from x (B, T, dim) to context (B, S, context_dim); returns (B, T, dim)."""
        q = self.query(x).unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)
        k, v = self.key_value(context).unflatten(-1, (self.num_heads, 2, self.head_dim)).unbind(3)
        y = F.scaled_dot_product_attention(
            q, k.transpose(1, 2), v.transpose(1, 2), dropout_p=self.dropout if self.training else 0.0
        )
        y = self.out(y.transpose(1, 2).flatten(2))
        return F.dropout(y, self.dropout, self.training) if self.dropout else y
