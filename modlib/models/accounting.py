"""What a decoder costs, from its sizes alone: floating point operations and the memory of activations."""

from __future__ import annotations

from typing import Literal

import torch

from modlib.models.partial_training import Work
from modlib.runtime.errors import ConfigError

FlopsConvention = Literal["palm", "causal_half"]


def flops_per_token(
    *,
    multiplied_parameters: int,
    num_layers: int,
    attention_dim: float,
    seq_len: int,
    convention: FlopsConvention = "palm",
    partly: Work | None = None,
) -> float:
    """Floating point operations of forward and backward for one token.

    "palm": 6 N + 12 L A T. "causal_half": 6 N + 6 L A T, which counts only the half of the scores that a causal mask
    keeps. The "palm" number is the one that papers and other libraries report as MFU.

    The 6 and the 12 are two operations each for forward, for gradients of weights and for gradients of inputs (of
    attention: of both factors of its two products). Of a partly frozen model each is counted where it is done.

    Args:
        multiplied_parameters: N, the parameters that are multiplied with activations: not a table that is only looked
            up, such as position embeddings or an untied token embedding.
        num_layers: L.
        attention_dim: A, query heads times head_dim; where values have another one, times the mean of the two. Grouped
            keys and values make N smaller, not this.
        seq_len: T, tokens per sequence.
        convention: Which of the two.
        partly: The multiply-adds of a partly frozen model, which take the place of N.

    Source: Chowdhery et al. 2022, PaLM, appendix B.
    """
    if convention not in ("palm", "causal_half"):
        raise ConfigError(f"convention ({convention!r}) must be 'palm' or 'causal_half'")
    pairs = num_layers * attention_dim * seq_len / (1 if convention == "palm" else 2)
    if partly is None:
        return float(6 * multiplied_parameters + 12 * pairs)
    multiplied = partly.forward + partly.weight_gradients + partly.input_gradients
    return float(2 * multiplied + (4 + 8 * partly.attention_share) * pairs)


def activation_bytes_per_token(
    *,
    num_layers: int,
    dim: int,
    kv_dim: int,
    ffn_dim: int,
    vocab_size: int,
    swiglu: bool,
    rotary: bool,
    dropout: bool,
    scores: int,
    bytes_per_value: int,
) -> int:
    """Estimated peak of what forward keeps for backward, per token, loss included, nothing recomputed.

    Per block, in values: inputs and outputs of both norms and the output of attention 5 dim, fused queries, keys and
    values dim + 2 kv_dim, the feed-forward's 2 ffn_dim (swiglu 4 ffn_dim), and with rotary positions the rotated
    queries and keys dim + kv_dim. At the end the final norm's input and output, and three times the logits in float32,
    when backward begins: their log-softmax, its gradient and their own. Attention keeps no scores (flash kernels), but
    with dropout it does on CPUs, which have no such kernel: the weights, what is dropped of them, and what is left, in
    float32. Other dropped values cost one byte.

    Args:
        num_layers: Number of blocks.
        dim: Size of the residual stream.
        kv_dim: Key/value heads times head_dim.
        ffn_dim: Hidden size of the feed-forward.
        vocab_size: Size of the logits.
        swiglu: Whether the feed-forward is gated.
        rotary: Whether queries and keys are rotated.
        dropout: Whether dropout is on.
        scores: Attention scores of one token in one block, query heads times keys; counted when dropout is on and this
            machine has no GPU.
        bytes_per_value: 4 for float32, 2 for bfloat16.
    """
    values = 5 * dim + (dim + 2 * kv_dim) + (4 if swiglu else 2) * ffn_dim
    if rotary:
        values += dim + kv_dim
    per_token = num_layers * values * bytes_per_value
    per_token += 2 * dim * bytes_per_value + 3 * 4 * vocab_size
    if dropout:
        per_token += dim + num_layers * 2 * dim
        if not torch.cuda.is_available():
            per_token += num_layers * scores * 3 * 4
    return per_token
