"""Cross-attention, masks and pooling against attention written out."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from modlib.nn.attention import CausalSelfAttention
from modlib.nn.attention_pooling import AttentionPooling
from modlib.nn.cross_attention import CrossAttention, SelfAttention, causal_mask_without_padding


def written_out(cross: CrossAttention, x: Tensor, context: Tensor) -> Tensor:
    """Head by head, with a softmax of the scores."""
    size = cross.head_dim
    q, kv = cross.query(x), cross.key_value(context)
    heads = []
    for head in range(cross.num_heads):
        own = q[..., head * size : (head + 1) * size]
        k = kv[..., 2 * head * size : (2 * head + 1) * size]
        v = kv[..., (2 * head + 1) * size : (2 * head + 2) * size]
        heads.append((own @ k.transpose(-1, -2) / math.sqrt(size)).softmax(-1) @ v)
    return cross.out(torch.cat(heads, dim=-1))


def test_cross_attention_is_softmax_of_products() -> None:
    torch.manual_seed(0)
    cross = CrossAttention(dim=12, context_dim=20, num_heads=3, bias=True, dropout=0.0)
    x, context = torch.randn(2, 5, 12), torch.randn(2, 7, 20)
    assert torch.allclose(cross(x, context), written_out(cross, x, context), atol=1e-6)


def test_cross_attention_equals_torchs() -> None:
    torch.manual_seed(0)
    cross = CrossAttention(dim=8, context_dim=8, num_heads=2, bias=True, dropout=0.0)
    torchs = nn.MultiheadAttention(8, 2, batch_first=True)
    k, v = cross.key_value.weight.view(2, 2, 4, 8).unbind(1)
    key_bias, value_bias = cross.key_value.bias.view(2, 2, 4).unbind(1)
    with torch.no_grad():
        torchs.in_proj_weight.copy_(torch.cat((cross.query.weight, k.reshape(8, 8), v.reshape(8, 8))))
        torchs.in_proj_bias.copy_(torch.cat((cross.query.bias, key_bias.flatten(), value_bias.flatten())))
        torchs.out_proj.load_state_dict(cross.out.state_dict())
    x, context = torch.randn(3, 4, 8), torch.randn(3, 6, 8)
    assert torch.allclose(cross(x, context), torchs(x, context, context)[0], atol=1e-6)


def test_self_attention_without_mask_sees_everything_or_only_the_past() -> None:
    torch.manual_seed(0)
    attention = SelfAttention(dim=8, num_heads=2, num_kv_heads=2, rotary=None, qk_norm=None, bias=True, dropout=0.0)
    causal = CausalSelfAttention(dim=8, num_heads=2, num_kv_heads=2, rotary=None, qk_norm=None, bias=True, dropout=0.0)
    causal.load_state_dict(attention.state_dict())
    x = torch.randn(2, 5, 8)
    assert torch.equal(attention(x, is_causal=True), causal(x))
    assert torch.allclose(attention(x, torch.ones(5, 5, dtype=torch.bool).tril()), causal(x), atol=1e-6)
    changed = x.clone()
    changed[:, -1] += 1.0
    assert not torch.allclose(attention(x)[:, 0], attention(changed)[:, 0], atol=1e-3)


def test_mask_shows_the_past_without_padding_and_never_nothing() -> None:
    mask = causal_mask_without_padding(torch.tensor([[1, 1, 0, 1], [0, 0, 1, 1]]))
    assert mask.shape == (2, 1, 4, 4)
    assert mask[0, 0].int().tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 0, 1]]
    assert mask[1, 0].int().tolist() == [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 1]]


def pooling(**changes: object) -> AttentionPooling:
    torch.manual_seed(1)
    sizes = {"num_queries": 3, "dim": 8, "context_dim": 12, "num_heads": 2, "norm": nn.LayerNorm, "bias": True}
    return AttentionPooling(**{**sizes, "dropout": 0.0, **changes})  # type: ignore[arg-type]


def test_pooling_is_attention_of_learned_queries() -> None:
    pool = pooling()
    context = torch.randn(2, 9, 12)
    queries = pool.queries.weight.repeat(2, 1, 1)
    expected = pool.norm(written_out(pool.attention, queries, pool.context_norm(context)))
    assert pool(context).shape == (2, 3, 8)
    assert torch.allclose(pool(context), expected, atol=1e-6)


def test_order_of_the_context_does_not_matter() -> None:
    pool, context = pooling(), torch.randn(2, 9, 12)
    assert torch.allclose(pool(context), pool(context[:, torch.randperm(9)]), atol=1e-6)


@pytest.mark.parametrize("bias", [True, False])
def test_bias_is_in_every_projection_and_norm_or_in_none(bias: bool) -> None:
    names = [name for name, _ in pooling(bias=bias).named_parameters() if name.endswith("bias")]
    assert len(names) == (5 if bias else 0)


def test_dropout_is_in_training_only() -> None:
    pool, context = pooling(dropout=0.5), torch.randn(2, 9, 12)
    assert not torch.equal(pool(context), pool(context))
    pool.eval()
    assert torch.equal(pool(context), pool(context))
