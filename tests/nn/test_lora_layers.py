"""Adapted layers against peft, and against the plain layer with the updated weight."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from modlib.nn.lora_layers import (
    LoRALayer,
    adapt,
    is_layer,
    refusal,
)

R, ALPHA = 4, 6.0


def transposed() -> nn.Module:
    return pytest.importorskip("transformers.pytorch_utils").Conv1D(6, 10)


def ids() -> Tensor:
    return torch.tensor([[0, 1, 2, 2], [8, 3, 0, 1]])


# name -> (the layer, an input, whether peft computes the same)
LAYERS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor], bool]] = {
    "linear": (lambda: nn.Linear(10, 6), lambda: torch.randn(2, 3, 10), True),
    "linear without bias": (lambda: nn.Linear(10, 6, bias=False), lambda: torch.randn(3, 10), True),
    "embedding": (lambda: nn.Embedding(9, 6), ids, True),
    "padded embedding": (lambda: nn.Embedding(9, 6, padding_idx=2), ids, True),
    "rare ids": (lambda: nn.Embedding(9, 6, scale_grad_by_freq=True), ids, True),
    "sparse embedding": (lambda: nn.Embedding(9, 6, sparse=True), ids, False),
    "transformers Conv1D": (transposed, lambda: torch.randn(2, 3, 10), True),
    "conv1d": (lambda: nn.Conv1d(4, 6, 3, stride=2), lambda: torch.randn(2, 4, 9), True),
    "conv2d": (lambda: nn.Conv2d(4, 6, (3, 2), stride=2, padding=1), lambda: torch.randn(2, 4, 8, 7), True),
    "conv2d of 1": (lambda: nn.Conv2d(4, 6, 1, bias=False), lambda: torch.randn(2, 4, 5, 5), True),
    "conv3d": (lambda: nn.Conv3d(4, 6, 2, padding=1), lambda: torch.randn(1, 4, 5, 4, 3), True),
    "dilated": (lambda: nn.Conv2d(4, 6, 3, dilation=2, padding="same"), lambda: torch.randn(2, 4, 8, 7), False),
    "grouped": (lambda: nn.Conv2d(4, 6, 3, groups=2, padding=1), lambda: torch.randn(2, 4, 8, 7), False),
    "depthwise": (lambda: nn.Conv1d(4, 8, 3, groups=4), lambda: torch.randn(2, 4, 9), False),
    "circular": (lambda: nn.Conv1d(4, 6, 3, padding=1, padding_mode="circular"), lambda: torch.randn(2, 4, 9), False),
}


def adapted(layer: nn.Module, dropout: float = 0.0) -> LoRALayer:
    """The layer with adapters that do something."""
    found = adapt(layer, r=R, alpha=ALPHA, dropout=dropout)
    for adapter in (found.lora_A, found.lora_B):
        nn.init.normal_(adapter, std=0.3)
    return found


@pytest.mark.parametrize("name", LAYERS)
def test_it_is_the_plain_layer_with_an_updated_weight(name: str) -> None:
    torch.manual_seed(0)
    make, data, _ = LAYERS[name]
    plain, x = make(), data()
    layer = adapted(copy.deepcopy(plain))
    with torch.no_grad():
        plain.weight += ALPHA / R * layer.delta(layer.lora_A, layer.lora_B)
    torch.testing.assert_close(layer(x), plain(x), rtol=1e-5, atol=1e-5)
    layer.weight.requires_grad_(False)
    layer(x).sum().backward()
    assert layer.lora_A.grad is not None
    assert layer.lora_B.grad is not None


@pytest.mark.parametrize("name", LAYERS)
def test_without_an_update_it_is_the_plain_layer_to_the_bit(name: str) -> None:
    torch.manual_seed(0)
    make, data, _ = LAYERS[name]
    plain, x = make(), data()
    layer = adapted(copy.deepcopy(plain))
    nn.init.zeros_(layer.lora_A if isinstance(plain, nn.Embedding) else layer.lora_B)
    assert torch.equal(layer(x), plain(x))
    assert isinstance(layer, type(plain))
    assert [*layer.state_dict()] == [*plain.state_dict(), "lora_A", "lora_B"]


@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("name", [name for name, (_, _, in_peft) in LAYERS.items() if in_peft])
def test_output_and_gradients_are_those_of_peft(name: str, dropout: float) -> None:
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    make, data, _ = LAYERS[name]
    plain, x = make(), data()
    layer = adapted(copy.deepcopy(plain), dropout)
    config = peft.LoraConfig(
        r=R,
        lora_alpha=ALPHA,
        lora_dropout=dropout,
        target_modules=["layer"],
        fan_in_fan_out=name == "transformers Conv1D",
    )
    oracle: Any = peft.get_peft_model(nn.ModuleDict({"layer": plain}), config).base_model.model["layer"]
    if isinstance(plain, nn.Embedding):
        a, b = oracle.lora_embedding_A["default"], oracle.lora_embedding_B["default"]
        assert not a.any()  # what begins at zero, and with which shapes
    else:
        a, b = oracle.lora_A["default"].weight, oracle.lora_B["default"].weight
        assert not b.any()
    with torch.no_grad():
        a.copy_(layer.lora_A)
        b.copy_(layer.lora_B)
    outputs = []
    for module in (layer, oracle):
        torch.manual_seed(1)  # of the dropout
        outputs.append(module(x))
        (outputs[-1] ** 2).sum().backward()
    torch.testing.assert_close(outputs[0], outputs[1])
    torch.testing.assert_close(layer.lora_A.grad, a.grad)
    torch.testing.assert_close(layer.lora_B.grad, b.grad)


def test_dropout_is_of_the_adapter_and_of_training() -> None:
    torch.manual_seed(0)
    layer, x = adapted(nn.Linear(10, 6), dropout=0.5), torch.randn(3, 10)
    assert not torch.equal(layer(x), layer(x))
    layer.eval()
    assert torch.equal(layer(x), layer(x))
    nn.init.zeros_(layer.lora_B)
    layer.train()
    assert torch.equal(layer(x), nn.functional.linear(x, layer.weight, layer.bias))


def test_the_base_of_a_layer_may_be_computed_in_bfloat16() -> None:
    torch.manual_seed(0)
    layer, x = adapted(nn.Linear(10, 6)), torch.randn(3, 10)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), layer(x), rtol=0.05, atol=0.05)


def test_it_says_its_rank() -> None:
    assert repr(adapted(nn.Linear(10, 6), dropout=0.1)) == (
        "LoRALinear(in_features=10, out_features=6, bias=True, r=4, scaling=1.5, lora_dropout=0.1)"
    )


class Scaled(nn.Linear):
    """A layer with a forward of its own."""


@pytest.mark.parametrize(
    ("layer", "text"),
    [
        (lambda: adapted(nn.Linear(2, 2)), "has an adapter already; adapt a layer once"),
        (
            lambda: Scaled(2, 2),
            "is a Scaled, must be exactly one of Linear, Embedding, Conv1d, Conv2d, Conv3d and transformers' Conv1D; "
            "its forward may not be theirs",
        ),
        (
            lambda: nn.utils.weight_norm(nn.Linear(2, 2)),
            "must have its weight as a parameter; it is computed from others (weight_norm?)",
        ),
        (
            lambda: nn.Embedding(4, 2, max_norm=1.0),
            "has max_norm (1.0), must have None: the lookup would rescale the frozen weight in place",
        ),
        (lambda: nn.Conv1d(6, 6, 3, groups=3), "has groups (3), which must divide r (4); nearest valid r: 6"),
        (lambda: nn.Conv1d(6, 6, 3, groups=2), None),
    ],
)
@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
def test_what_cannot_be_right_is_refused(layer: Callable[[], nn.Module], text: str | None) -> None:
    module = layer()
    assert is_layer(module)
    assert refusal(module, R) == text
    assert not is_layer(nn.LayerNorm(2))
