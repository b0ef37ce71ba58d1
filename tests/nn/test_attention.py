"""Causal self-attention against attention written out, and its cache."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from modlib.nn.attention import CausalSelfAttention, join_qkv, split_qkv
from modlib.nn.rope import RotaryTable

DIM, HEADS, STEPS = 24, 4, 10


def attention(num_kv_heads: int = HEADS, rotary: bool = False, **changes: object) -> CausalSelfAttention:
    torch.manual_seed(1)
    table = RotaryTable(seq_len=STEPS, rotary_dim=DIM // HEADS, theta=100.0) if rotary else None
    arguments: dict = {"qk_norm": None, "bias": True, "dropout": 0.0, **changes}
    return CausalSelfAttention(dim=DIM, num_heads=HEADS, num_kv_heads=num_kv_heads, rotary=table, **arguments)


def written_out(module: CausalSelfAttention, x: Tensor) -> Tensor:
    """The same, head by head and with an explicit mask."""
    weights = split_qkv(module.qkv.weight, module.num_heads, module.num_kv_heads)
    biases = split_qkv(module.qkv.bias, module.num_heads, module.num_kv_heads)
    q, k, v = ((x @ weight.T + bias).view(*x.shape[:2], -1, module.head_dim) for weight, bias in zip(weights, biases))
    if module.q_norm is not None and module.k_norm is not None:
        q, k = module.q_norm(q), module.k_norm(k)
    if module.rotary is not None:
        q, k = module.rotary(q), module.rotary(k)
    mask = torch.ones(x.shape[1], x.shape[1]).tril() == 0
    heads = []
    for head in range(module.num_heads):
        shared = head // (module.num_heads // module.num_kv_heads)
        scores = q[:, :, head] @ k[:, :, shared].transpose(1, 2) / math.sqrt(module.head_dim)
        heads.append(scores.masked_fill(mask, -math.inf).softmax(-1) @ v[:, :, shared])
    return torch.cat(heads, -1) @ module.out.weight.T + module.out.bias


@pytest.mark.parametrize("num_kv_heads", [1, 2, 4])
@pytest.mark.parametrize("rotary", [False, True])
@pytest.mark.parametrize("qk_norm", [None, nn.RMSNorm, nn.LayerNorm])
def test_equals_attention_written_out(num_kv_heads: int, rotary: bool, qk_norm: type[nn.Module] | None) -> None:
    module = attention(num_kv_heads, rotary, qk_norm=qk_norm)
    x = torch.randn(2, STEPS, DIM)
    torch.testing.assert_close(module(x), written_out(module, x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("num_kv_heads", [1, 2, 4])
@pytest.mark.parametrize("parts", [(10,), (1,) * 10, (4, 1, 5), (1, 9)])
def test_decoding_in_any_portions_equals_forward(num_kv_heads: int, parts: tuple[int, ...]) -> None:
    module = attention(num_kv_heads, rotary=True).eval()
    x = torch.randn(2, STEPS, DIM)
    keys, values = (torch.full((2, num_kv_heads, STEPS, DIM // HEADS), math.nan) for _ in range(2))
    pieces, start = [], 0
    for length in parts:
        pieces.append(module.decode(x[:, start : start + length], keys, values, start))
        start += length
    torch.testing.assert_close(torch.cat(pieces, 1), module(x), rtol=1e-5, atol=1e-6)


def test_later_tokens_change_nothing_before_them() -> None:
    module = attention(2)
    x = torch.randn(1, STEPS, DIM)
    changed = x.clone()
    changed[:, 6:] += 1
    assert torch.equal(module(x)[:, :6], module(changed)[:, :6])


def test_dropout_is_on_in_training_and_off_in_eval() -> None:
    module = attention(dropout=0.5)
    x = torch.randn(1, STEPS, DIM)
    assert not torch.equal(module(x), module(x))
    module.eval()
    assert torch.equal(module(x), module(x))
    torch.testing.assert_close(module(x), attention()(x))


def test_attention_weights_are_dropped_themselves() -> None:
    """Of one position that can only see itself: its weight is 1, dropped it is 0, kept it is 1 / (1 - dropout)."""
    module = attention(dropout=0.25)
    q, k, v = (torch.ones(4000, HEADS, 1, DIM // HEADS) for _ in range(3))
    with torch.no_grad():
        module.out.weight.copy_(torch.eye(DIM))
        module.out.bias.zero_()
    heads = module._attend(q, k, v, is_causal=True).view(4000, HEADS, -1)
    dropped = (heads == 0).all(-1)  # a whole head at once: the weight, not single outputs
    assert dropped.float().mean().item() == pytest.approx(0.25, abs=0.02)
    assert heads.mean().item() == pytest.approx(1.0, abs=0.05)
    assert torch.equal(module.eval()._attend(q, k, v, is_causal=True), torch.ones(4000, 1, DIM))


@pytest.mark.parametrize("num_kv_heads", [1, 2, 4])
def test_joining_and_splitting_are_inverse(num_kv_heads: int) -> None:
    head_dim = 3
    q, k, v = (torch.randn(rows * head_dim, 5) for rows in (4, num_kv_heads, num_kv_heads))
    joined = join_qkv(q, k, v, num_kv_heads)
    for part, back in zip((q, k, v), split_qkv(joined, 4, num_kv_heads)):
        assert torch.equal(part, back)


def test_a_slice_of_the_fused_rows_is_a_whole_group() -> None:
    """What tensor parallelism relies on: half of the rows are half of the heads, with their keys and values."""
    q, k, v = torch.arange(4.0)[:, None], torch.arange(10.0, 12)[:, None], torch.arange(20.0, 22)[:, None]
    assert join_qkv(q, k, v, 2).flatten().tolist() == [0, 1, 10, 20, 2, 3, 11, 21]
