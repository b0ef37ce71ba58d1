"""Which parameters decay."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard

from modlib.models.gpt2 import GPT2
from modlib.optim.groups import DecayGroups
from modlib.runtime.errors import ConfigError
from tests.workers import run_ranks


def small(**changes: Any) -> GPT2:
    return GPT2(**{"vocab_size": 31, "seq_len": 8, "num_layers": 2, "num_heads": 2, "dim": 8, **changes})


def names(model: nn.Module, group: dict[str, Any]) -> set[str]:
    return {name for name, parameter in model.named_parameters() if any(parameter is p for p in group["params"])}


def test_gpt2_124m_has_nanogpts_groups() -> None:
    with torch.device("meta"):
        model = GPT2(vocab_size=50304, seq_len=1024, num_layers=12, num_heads=12, dim=768)
    decayed, kept = DecayGroups()(model)
    assert [len(group["params"]) for group in (decayed, kept)] == [50, 98]
    assert sum(parameter.numel() for parameter in decayed["params"]) == 124_354_560
    assert sum(parameter.numel() for parameter in kept["params"]) == 121_344
    assert "weight_decay" not in decayed
    assert kept["weight_decay"] == 0.0


def test_every_trainable_parameter_is_in_one_group() -> None:
    model = small(tie_embeddings=False, qk_norm=True)
    groups = DecayGroups()(model)
    found = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(found) == sorted(id(parameter) for parameter in model.parameters())
    assert names(model, groups[1]) == {n for n, _ in model.named_parameters() if "norm" in n or n.endswith("bias")}


def test_the_vectors_of_query_and_key_norms_do_not_decay() -> None:
    model = small(qk_norm=True)
    _, kept = DecayGroups()(model)
    norms = {name for name, _ in model.named_parameters() if "q_norm" in name or "k_norm" in name}
    assert norms
    assert norms <= names(model, kept)


def test_a_tied_head_is_in_once_and_decays_with_its_embedding() -> None:
    model = small(tie_embeddings=True)
    decayed, _ = DecayGroups()(model)
    assert sum(parameter is model.token_embedding.weight for parameter in decayed["params"]) == 1
    _, kept = DecayGroups(decay_embeddings=False)(model)
    assert sum(parameter is model.token_embedding.weight for parameter in kept["params"]) == 1


def test_embeddings_are_a_choice() -> None:
    model = small(tie_embeddings=False)
    _, kept = DecayGroups(decay_embeddings=False)(model)
    assert {"token_embedding.weight", "position_embedding.weight"} <= names(model, kept)
    assert "lm_head.weight" not in names(model, kept)


def test_patterns_exclude() -> None:
    model = small()
    _, kept = DecayGroups(weight_decay_excluded=[r"blocks\.1\.attention\.", "position"])(model)
    assert {"blocks.1.attention.qkv.weight", "position_embedding.weight"} <= names(model, kept)
    assert "blocks.0.attention.qkv.weight" not in names(model, kept)


def test_frozen_are_left_out_and_shared_are_in_once() -> None:
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 4), nn.Linear(4, 5, bias=False))
    model[2].weight = model[0].weight
    model[1].weight.requires_grad_(False)
    groups = DecayGroups()(model)
    assert [[id(p) for p in group["params"]] for group in groups] == [[id(model[0].weight)], [id(model[1].bias)]]


def test_an_empty_group_is_left_out() -> None:
    assert len(DecayGroups()(nn.Linear(2, 2, bias=False))) == 1


def test_a_pattern_that_matches_nothing_is_refused() -> None:
    text = (
        r"weight_decay_excluded \('wte'\) must match a parameter of GPT2; its names look like "
        r"token_embedding\.weight, position_embedding\.weight, blocks\.0\.attention_norm\.weight"
    )
    with pytest.raises(ConfigError, match=text):
        DecayGroups(weight_decay_excluded=["wte", "norm"])(small())


def test_a_broken_pattern_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"weight_decay_excluded \('\('\) must be a regular expression: missing \)"):
        DecayGroups(weight_decay_excluded=["("])


def test_nothing_to_train_is_refused() -> None:
    with pytest.raises(ConfigError, match="Linear must have a trainable parameter; all 2 are frozen"):
        DecayGroups()(nn.Linear(2, 2).requires_grad_(False))


def sharded_group_names() -> list[set[str]]:
    model = small()
    for unit in model.fsdp_units():
        fully_shard(unit)
    fully_shard(model)
    groups = DecayGroups()(model)
    torch.optim.AdamW(groups)
    assert dist.get_world_size() == 2
    return [names(model, group) for group in groups]


def test_sharded_models_have_the_same_groups_on_every_rank() -> None:
    model = small()
    expected = [names(model, group) for group in DecayGroups()(model)]
    assert run_ranks(2, sharded_group_names) == [expected, expected]
