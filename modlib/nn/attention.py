"""Causal self-attention with grouped key/value heads, rotary positions and an optional key/value cache."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modlib.nn.document_mask import DocumentMask, attend_within
from modlib.nn.norms import build_norm
from modlib.nn.rope import RotaryTable


class CausalSelfAttention(nn.Module):
    """Multi-head causal attention through torch's scaled_dot_product_attention.

    One fused projection makes queries, keys and values. Its rows are grouped by key/value head: the queries of the
    group, its key, its value. A contiguous slice of rows is then a whole number of groups, which is what tensor
    parallelism cuts, and nothing is copied to take the fused output apart when every query has its own key.

    Args:
        dim: Size of the residual stream.
        num_heads: Query heads; divides dim.
        num_kv_heads: Key/value heads; divides num_heads.
        rotary: The shared position table, or None when positions are not rotary.
        qk_norm: Builds the norm over head_dim put on queries and keys before rotation, or None for no norm.
        bias: Whether the projections have biases.
        dropout: Share of attention weights, and of outputs, dropped in training; never in eval.

    Source: Ainslie et al. 2023, GQA; Dehghani et al. 2023, Scaling ViT to 22B, section 2 (query/key norms).
    """

    def __init__(
        self,
        *,
        dim: int,
        num_heads: int,
        num_kv_heads: int,
        rotary: RotaryTable | None,
        qk_norm: Callable[..., nn.Module] | None,
        bias: bool,
        dropout: float,
    ) -> None:
        super().__init__()
        self.num_heads, self.num_kv_heads, self.head_dim = num_heads, num_kv_heads, dim // num_heads
        self.dropout = dropout
        self.qkv = nn.Linear(dim, (num_heads + 2 * num_kv_heads) * self.head_dim, bias=bias)
        self.out = nn.Linear(dim, dim, bias=bias)
        self.rotary = rotary
        self.q_norm = build_norm(qk_norm, self.head_dim, bias=bias) if qk_norm is not None else None
        self.k_norm = build_norm(qk_norm, self.head_dim, bias=bias) if qk_norm is not None else None

    def _project(self, x: Tensor, start: int, positions: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (B, H, T, D), keys and values (B, H_kv, T, D) of start .. start + T, or of positions (B, T)."""
        batch, steps, _ = x.shape
        per_group = self.num_heads // self.num_kv_heads
        groups = self.qkv(x).view(batch, steps, self.num_kv_heads, per_group + 2, self.head_dim)
        q, k, v = groups.split((per_group, 1, 1), dim=3)
        q, k, v = q.flatten(2, 3), k.flatten(2, 3), v.flatten(2, 3)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        if self.rotary is not None:
            q, k = self.rotary(q, start, positions), self.rotary(k, start, positions)
        return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, *, is_causal: bool, mask: Tensor | None = None) -> Tensor:
        y = F.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=mask,
            dropout_p=self.dropout if self.training else 0.0,
            is_causal=is_causal,
            enable_gqa=self.num_heads != self.num_kv_heads,
        )
        return self._leave(y)

    def _leave(self, y: Tensor) -> Tensor:
        y = self.out(y.transpose(1, 2).flatten(2))
        return F.dropout(y, self.dropout, self.training) if self.dropout else y

    def forward(self, x: Tensor, documents: DocumentMask | None = None) -> Tensor:
        """Attend within whole sequences, or within each of their documents: x (B, T, dim) to (B, T, dim)."""
        if documents is None:
            return self._attend(*self._project(x, 0), is_causal=True)
        q, k, v = self._project(x, 0, documents.positions)
        if isinstance(documents.allowed, Tensor):
            return self._attend(q, k, v, is_causal=False, mask=documents.allowed)
        return self._leave(attend_within(q, k, v, documents.allowed))

    def decode(self, x: Tensor, keys: Tensor, values: Tensor, start: int) -> Tensor:
        """Attend from new tokens to everything cached so far, and cache the new tokens' keys and values in place.

        Args:
            x: (B, T, dim), the positions start .. start + T.
            keys: (B, H_kv, S, D) with S >= start + T; the first `start` positions are filled.
            values: The same for values.
            start: How many positions are cached.
        """
        q, k, v = self._project(x, start)
        end = start + x.shape[1]
        keys[:, :, start:end] = k
        values[:, :, start:end] = v
        if start == 0:
            return self._attend(q, k, v, is_causal=True)
        mask = None
        if x.shape[1] > 1:  # is_causal would align the mask with the first key; the new tokens are the last ones
            mask = torch.ones(x.shape[1], end, dtype=torch.bool, device=x.device).tril(start)
        return self._attend(q, keys[:, :, :end], values[:, :, :end], is_causal=False, mask=mask)


def join_qkv(q: Tensor, k: Tensor, v: Tensor, num_kv_heads: int) -> Tensor:
    """Fuse separate query, key and value rows, (rows, ...) each, into the grouped rows of CausalSelfAttention.qkv."""
    parts = [part.reshape(num_kv_heads, -1, *part.shape[1:]) for part in (q, k, v)]
    return torch.cat(parts, dim=1).flatten(0, 1)


def split_qkv(qkv: Tensor, num_heads: int, num_kv_heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Take the grouped rows of CausalSelfAttention.qkv apart again: the inverse of join_qkv."""
    per_group = num_heads // num_kv_heads
    head_dim = qkv.shape[0] // (num_heads + 2 * num_kv_heads)
    groups = qkv.reshape(num_kv_heads, (per_group + 2) * head_dim, *qkv.shape[1:])
    q, k, v = groups.split((per_group * head_dim, head_dim, head_dim), dim=1)
    return q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1)
