"""A few learned queries that sum up a sequence of any length."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from modlib.nn.cross_attention import CrossAttention
from modlib.nn.norms import build_norm


class AttentionPooling(nn.Module):
    """norm(cross_attention(learned queries, norm(context))): S positions become num_queries.

    Args:
        num_queries: Learned queries, and so positions of the result.
        dim: Size of the queries and of the result.
        context_dim: Size of what is pooled.
        num_heads: Heads; divides dim.
        norm: A norm that takes its size first, such as torch.nn.LayerNorm.
        bias: Biases in projections and norms.
        dropout: Share of attention weights, and of outputs, dropped in training.

    Source: Yu et al. 2022, CoCa, section 3.2 (attentional poolers); Lee et al. 2019, Set Transformer, section 3.2.
    """

    def __init__(
        self,
        *,
        num_queries: int,
        dim: int,
        context_dim: int,
        num_heads: int,
        norm: Callable[..., nn.Module],
        bias: bool,
        dropout: float,
    ) -> None:
        super().__init__()
        self.queries = nn.Embedding(num_queries, dim)  # a module that initial weights and weight decay know
        self.context_norm = build_norm(norm, context_dim, bias=bias)
        self.attention = CrossAttention(
            dim=dim, context_dim=context_dim, num_heads=num_heads, bias=bias, dropout=dropout
        )
        self.norm = build_norm(norm, dim, bias=bias)

    def forward(self, context: Tensor) -> Tensor:
        """Pool context (B, S, context_dim) into (B, num_queries, dim)."""
        queries = self.queries.weight.expand(context.shape[0], -1, -1)
        return self.norm(self.attention(queries, self.context_norm(context)))
