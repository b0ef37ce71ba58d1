"""Costs of wrapped architectures whose heads or feed-forwards are not the usual ones."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from modlib.models.huggingface import HuggingFacePretrainedModel
from tests.models.live_memory import LiveMemory

pytest.importorskip("transformers")

SIZES = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
LATENT = {
    "num_key_value_heads": 4,
    "moe_intermediate_size": 16,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 4,
    "v_head_dim": 8,
}
MIXTURE = {"num_key_value_heads": 2, "num_local_experts": 4}


def build(model_type: str, **fields: Any) -> Any:
    return HuggingFacePretrainedModel(config={"model_type": model_type, **SIZES, **fields})


@pytest.mark.parametrize(
    ("model_type", "fields"),
    [("deepseek_v3", {"n_group": 1, "topk_group": 1}), pytest.param("deepseek_v2", {}, marks=pytest.mark.slow)],
)
def test_latent_attention_counts_its_own_head_dims(model_type: str, fields: dict[str, Any]) -> None:
    with torch.device("meta"):
        model = build(model_type, **LATENT, **fields)
        wider = build(model_type, **LATENT | {"v_head_dim": 16}, **fields)
    # twelve per layer, head, dim of queries (4 + 4) or values, and token: 12 x 2 x 4 x 8 x 16
    assert model.flops_per_token(32) - model.flops_per_token(16) == 12_288
    assert wider.flops_per_token(32) - wider.flops_per_token(16) == 12_288 * (8 + 16) / 16


def test_of_experts_those_count_that_a_token_uses() -> None:
    with torch.device("meta"):
        one, two, all_of_them = (build("mixtral", **MIXTURE, num_experts_per_tok=k) for k in (1, 2, 4))
    expert = 3 * 32 * 48
    assert two.flops_per_token(16) - one.flops_per_token(16) == 6 * 2 * expert
    assert all_of_them.flops_per_token(16) - two.flops_per_token(16) == 6 * 2 * 2 * expert


def test_activations_of_experts_against_measured_peak() -> None:
    with torch.device("meta"):
        dense = build("llama", num_key_value_heads=2)
    estimates = []
    for used in (1, 2):
        model = build("mixtral", **MIXTURE, num_experts_per_tok=used)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.05)
        tokens = torch.randint(97, (4, 64), generator=torch.Generator().manual_seed(0))
        with LiveMemory(tokens, *model.parameters(), *model.buffers()) as memory:
            F.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten()).backward()
        estimates.append(model.activation_bytes(4, 64))
        assert 0.95 < memory.peak / estimates[-1] < 1.4
    assert dense.activation_bytes(4, 64) < estimates[0] < estimates[1]


@pytest.mark.slow
def test_layers_without_experts_and_shared_experts_count_as_they_are() -> None:
    with torch.device("meta"):
        model = build("deepseek_v3", **LATENT, n_group=1, topk_group=1)
        dense = build("deepseek_v3", **LATENT | {"first_k_dense_replace": 2}, n_group=1, topk_group=1)
    # 48 hidden values in a dense layer; in one of experts 2 x 16 and 16 shared, and two copies of a token
    assert model.activation_bytes(1, 1) - dense.activation_bytes(1, 1) == 2 * 2 * 32 * 4
