"""Work of partly frozen models: equal to what torch counts in forward and backward."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from modlib.models.coca import CoCa
from modlib.models.gpt2 import GPT2
from modlib.models.huggingface import HuggingFacePretrainedModel
from modlib.models.lora import LoRAModel
from modlib.training.plan import flops_per_token

LENGTH = 128


def gpt2(**changes: Any) -> GPT2:
    return GPT2(vocab_size=512, seq_len=LENGTH, num_layers=3, num_heads=4, dim=128, **changes)


def llama() -> nn.Module:
    sizes = {"vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    config = {"model_type": "llama", **sizes, "num_attention_heads": 4, "max_position_embeddings": LENGTH}
    return HuggingFacePretrainedModel(config=config)


def counted(model: Any) -> float:
    """Per token, by torch, in a kernel whose operations it knows."""
    tokens = torch.zeros((1, LENGTH), dtype=torch.int64)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(tokens).sum().backward()
    return counter.get_total_flops() / LENGTH


@pytest.mark.parametrize(
    ("targets", "bias", "expected"),
    [
        (["attention.qkv"], "none", 3_148_800),
        (["qkv", "out", "up", "down"], "none", 3_259_392),
        (["qkv"], "lora_only", 3_148_800),
        (["qkv"], "all", 3_248_128),  # the norm before it has a bias, and so a gradient goes through it
        ([r"blocks\.1\.attention\.out"], "none", 2_429_952),  # the scores of its block have no backward pass
        ([r"blocks\.2\.feed_forward\.up"], "none", 1_783_808),
        (["token_embedding"], "none", 3_214_336),
    ],
)
def test_adapters(targets: list[str], bias: Any, expected: int) -> None:
    model: Any = LoRAModel(gpt2, r=4, alpha=1.0, targets=targets, bias=bias)
    assert model.flops_per_token(LENGTH) == expected == counted(model)
    if expected > 3_000_000:  # the scores of every layer have a backward pass
        assert model.flops_per_token(LENGTH, "causal_half") == expected - 6 * 3 * 128 * LENGTH


@pytest.mark.parametrize(("part", "expected"), [("lm_head", 1_638_400), ("blocks.2", 2_555_904)])
def test_one_part_of_an_untied_model(part: str, expected: int) -> None:
    model = gpt2(tie_embeddings=False).requires_grad_(False)
    model.get_submodule(part).requires_grad_(True)
    assert model.flops_per_token(LENGTH) == expected == counted(model)


def test_a_frozen_embedding_saves_nothing_behind_it() -> None:
    model = gpt2(tie_embeddings=False)
    full = model.flops_per_token(LENGTH)
    model.token_embedding.requires_grad_(False)
    vectors = sum(parameter.numel() for parameter in model.parameters() if parameter.ndim == 1)
    assert model.flops_per_token(LENGTH) == full - 6 * vectors == counted(model)


@pytest.mark.parametrize("targets", [["o_proj"], ["up_proj"], ["lm_head"], ["q_proj", "k_proj", "v_proj"]])
def test_layers_that_read_the_same_values_of_a_wrapped_model(targets: list[str]) -> None:
    pytest.importorskip("transformers")
    model: Any = LoRAModel(llama, r=4, alpha=1.0, targets=targets)
    assert model.flops_per_token(LENGTH) == counted(model)


def test_a_model_without_a_count_of_its_own() -> None:
    model = nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 6), nn.Linear(6, 3), nn.Linear(3, 5)).requires_grad_(False)
    model[2].requires_grad_(True)
    assert flops_per_token(model, LENGTH) == 2 * (24 + 18 + 15) + 2 * 18 + 2 * 15 == counted(model)


def test_a_captioner_whose_image_side_is_frozen() -> None:
    sizes = {"image_size": 8, "patch_size": 2, "vision_layers": 1, "vision_dim": 8, "vision_heads": 2, "dim": 8}
    text = {"vocab_size": 9, "seq_len": 4, "text_layers": 1, "multimodal_layers": 1, "num_heads": 2}
    model = CoCa(**sizes, **text, num_vision_queries=3)
    whole = model.flops_per_token()
    model.requires_grad_(False)
    frozen = model.flops_per_token()
    model.multimodal_blocks.requires_grad_(True)
    assert frozen < model.flops_per_token() < whole
    # nothing in front of the blocks of both has a backward pass: 2 instead of 6 for each use of the image's weights
    image = [p for name, p in model.vision.named_parameters() if p.ndim > 1 and "position" not in name]
    assert whole - model.flops_per_token() > 4 * 16 * sum(p.numel() for p in image) / 4
