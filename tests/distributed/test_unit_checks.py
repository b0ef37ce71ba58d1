"""Units that cannot be sharded one by one are refused on one process; those that pass compute the same on two."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh

from modlib.distributed.fsdp import Sharding, shard
from modlib.distributed.unit_checks import require_whole_weights
from modlib.models.gpt2 import GPT2
from modlib.models.initialization import ComposedInitializer
from modlib.runtime.errors import ConfigError
from tests.workers import run_ranks

TOKENS = torch.arange(8).reshape(2, 4)


def gpt2(units: tuple[str, ...] | None, **settings: Any) -> GPT2:
    with torch.device("meta"):
        model = GPT2(vocab_size=11, seq_len=4, num_layers=2, num_heads=2, dim=16, **settings)
    model.sharding = None if units is None else Sharding(units=units)
    return model


def refusals(model: nn.Module) -> list[str]:
    try:
        require_whole_weights(model, lambda: model(TOKENS.to("meta")))
    except ConfigError as error:
        return error.problems
    return []


def test_a_table_read_outside_its_forward_is_named() -> None:
    assert refusals(gpt2(("Block", "Embedding"))) == [
        f"units (Embedding) must have weights that they alone read, but {name}.weight is read outside the forward of "
        "its Embedding, where it is a shard; leave Embedding out of units"
        for name in ("position_embedding", "token_embedding")
    ]
    assert refusals(gpt2(("Block", "Embedding"), position="rotary", tie_embeddings=False)) == []
    assert refusals(gpt2(("Block",))) == refusals(gpt2(None)) == []


class Tied(nn.Module):
    """An embedding whose table is the output layer's weight, as in transformers' models; its forward may fail."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.embed, self.head = nn.Linear(4, 4), nn.Embedding(11, 4), nn.Linear(4, 11, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        self.first.weight.sum()
        raise RuntimeError("some models do not compute on meta")


def test_a_tied_weight_is_named_whatever_the_forward_does() -> None:
    model = Tied()
    for kind, name, other in (("Embedding", "head", "embed"), ("Linear", "head", "embed")):
        model.sharding = Sharding(units=(kind,))  # type: ignore[assignment]
        assert refusals(model) == [
            f"units ({kind}) must have weights of their own, but {name}.weight is {other}.weight, and sharding would "
            f"make two of it; leave {kind} out of units"
        ]
    model.head.weight = nn.Parameter(torch.zeros(11, 4))
    assert refusals(model) == [
        "units (Linear) must have weights that they alone read, but first.weight is read outside the forward of its "
        "Linear, where it is a shard; leave Linear out of units"
    ]


CLASSES = ("Block", "CausalSelfAttention", "FeedForward", "Linear", "LayerNorm", "Embedding")


def computes(names: tuple[str, ...], settings: dict[str, Any]) -> str:
    """What a sharded forward of the model says: the loss, or the error."""
    try:
        model = gpt2(names, **settings)
        if dist.is_initialized():
            shard(model, init_device_mesh("cpu", (dist.get_world_size(),)), "float32")
        model.to_empty(device="cpu")
        ComposedInitializer()(model, 7)
        model(TOKENS).sum().backward()
        return f"{float(model(TOKENS).square().sum().detach()):.3f}"
    except (RuntimeError, ValueError, ConfigError) as error:
        return f"{type(error).__name__}"


def computed(cases: list[tuple[tuple[str, ...], dict[str, Any]]]) -> list[str]:
    return [computes(*case) for case in cases]


@pytest.mark.slow
def test_refused_is_what_fails_on_two_ranks() -> None:
    forms: list[dict[str, Any]] = [{}, {"position": "rotary"}, {"tie_embeddings": False}]
    forms.append({"position": "rotary", "tie_embeddings": False})
    present = {type(module).__name__ for module in gpt2(None).modules()}
    assert present >= set(CLASSES)
    cases = [((name,), form) for form in forms for name in CLASSES]
    single = computed(cases)
    for sharded in run_ranks(2, computed, cases):
        for case, alone, together in zip(cases, single, sharded, strict=True):
            assert (together == alone) == (refusals(gpt2(*case[:1], **case[1])) == []), (case, alone, together)
