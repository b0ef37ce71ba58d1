"""Feed-forward formulas and default sizes."""

from __future__ import annotations

import math

import pytest
import torch

from modlib.nn.feed_forward import Activation, FeedForward, default_ffn_dim


def build(activation: Activation, dropout: float = 0.0) -> FeedForward:
    torch.manual_seed(0)
    return FeedForward(dim=6, ffn_dim=10, activation=activation, bias=True, dropout=dropout)


def test_swiglu() -> None:
    module, x = build("swiglu"), torch.randn(3, 6)
    assert module.gate is not None
    gate = module.gate(x)
    expected = module.down(gate * torch.sigmoid(gate) * module.up(x))
    torch.testing.assert_close(module(x), expected)


def test_gelus_and_relu() -> None:
    x = torch.randn(3, 6)
    for activation, function in (
        ("gelu", lambda h: h * 0.5 * (1 + torch.erf(h / math.sqrt(2)))),
        ("gelu_tanh", lambda h: 0.5 * h * (1 + torch.tanh(math.sqrt(2 / math.pi) * (h + 0.044715 * h**3)))),
        ("relu", lambda h: h.clamp(min=0)),
    ):
        module = build(activation)
        torch.testing.assert_close(module(x), module.down(function(module.up(x))), rtol=1e-5, atol=1e-6)


def test_dropout_in_training_only() -> None:
    module, x = build("gelu", dropout=0.5), torch.randn(8, 6)
    assert (module(x) == 0).any()
    assert torch.equal(module.eval()(x), build("gelu")(x))


@pytest.mark.parametrize(
    ("dim", "activation", "expected"),
    [(768, "gelu", 3072), (768, "relu", 3072), (4096, "swiglu", 11008), (5120, "swiglu", 13824), (96, "swiglu", 256)],
)
def test_default_size(dim: int, activation: str, expected: int) -> None:
    assert default_ffn_dim(dim, activation) == expected
