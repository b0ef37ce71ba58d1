"""Several documents in one sequence that do not see each other: positions that begin anew, attention within each."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor


class DocumentMask(NamedTuple):
    """What all layers need to keep the documents of a batch apart; made once per forward.

    Args:
        positions: (B, T) int64, of each token within its document.
        allowed: Which keys a query sees: (B, 1, T, T), 0 where it does and -inf elsewhere; or a BlockMask of
            flex_attention.
    """

    positions: Tensor
    allowed: Any


def document_mask(document_ids: Tensor, dtype: torch.dtype, *, flex: bool = False) -> DocumentMask:
    """The mask of a causal model whose documents are kept apart.

    Args:
        document_ids: (B, T), equal for the tokens of a document, which stand side by side.
        dtype: What attention is computed in.
        flex: Whether it is computed by flex_attention, which skips what is masked; worth it where that is compiled.

    Source: Krell et al. 2021, Efficient Sequence Packing without Cross-contamination, section 3.2.
    """
    places = torch.arange(document_ids.shape[1], device=document_ids.device)
    begins = torch.ones_like(document_ids, dtype=torch.bool)
    begins[:, 1:] = document_ids[:, 1:] != document_ids[:, :-1]
    positions = places - torch.where(begins, places, 0).cummax(dim=1).values
    if flex:
        return DocumentMask(positions, _block_mask(document_ids))
    same = document_ids[:, :, None] == document_ids[:, None, :]
    seen = (same & (places[:, None] >= places))[:, None]
    # Numbers, not booleans: torch would make numbers of booleans in every layer, and keep them for backward.
    allowed = torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, -torch.inf)
    return DocumentMask(positions, allowed)


def document_mask_bytes(batch: int, steps: int, bytes_per_value: int) -> int:
    """Memory of the mask of one batch, which all layers share, where it is a number for each query and key."""
    return batch * steps * steps * bytes_per_value


def _block_mask(document_ids: Tensor) -> Any:
    from torch.nn.attention.flex_attention import create_block_mask

    def seen(batch: Tensor, _: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (query >= key) & (document_ids[batch, query] == document_ids[batch, key])

    batch, steps = document_ids.shape
    return create_block_mask(seen, batch, None, steps, steps, device=document_ids.device)


def attend_within(q: Tensor, k: Tensor, v: Tensor, block_mask: Any) -> Tensor:
    """flex_attention of q (B, H, T, D) over k and v (B, H_kv, T, D), as the mask allows."""
    from torch.nn.attention.flex_attention import flex_attention

    # Copies: where they were views into the fused projection, compiled for a CPU this gave wrong numbers.
    q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
    y = flex_attention(q, k, v, block_mask=block_mask, enable_gqa=q.shape[1] != k.shape[1])
    assert isinstance(y, Tensor)
    return y
