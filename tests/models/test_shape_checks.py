"""Every refusal of sizes that do not fit, by its whole text."""

from __future__ import annotations

from typing import Any

import pytest

from modlib.models.gpt2 import GPT2
from modlib.models.shape_checks import nearest_divisors
from modlib.runtime.errors import ConfigError

FITTING: dict[str, Any] = {"vocab_size": 64, "seq_len": 16, "num_layers": 2, "num_heads": 4, "dim": 256}


def problems(**changes: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        GPT2(**{**FITTING, **changes})
    return caught.value.problems


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"num_heads": 5}, "num_heads (5) must divide dim (256); nearest valid: 4 or 8"),
        ({"num_heads": 300}, "num_heads (300) must divide dim (256); nearest valid: 256"),
        ({"num_kv_heads": 3}, "num_kv_heads (3) must divide num_heads (4); nearest valid: 2 or 4"),
        ({"num_kv_heads": 8}, "num_kv_heads (8) must divide num_heads (4); nearest valid: 4"),
        ({"dropout": 1.0}, "dropout (1.0) must be in [0, 1); 0 turns it off"),
        ({"dropout": -0.1}, "dropout (-0.1) must be in [0, 1); 0 turns it off"),
        ({"activation": "silu"}, "activation ('silu') must be one of 'gelu', 'gelu_tanh', 'relu', 'swiglu'"),
        ({"position": "alibi"}, "position ('alibi') must be one of 'learned', 'rotary', 'none'"),
        ({"rope_theta": 0.0}, "rope_theta (0.0) must be above 1; RoFormer uses 10000"),
        ({"rope_fraction": 0.0}, "rope_fraction (0.0) must be in (0, 1]; for no rotation set position = 'none'"),
        (
            {"position": "rotary", "dim": 36},
            "rope_fraction (1.0) x head_dim (9 = dim / num_heads) = 9 must be even for position ('rotary'); "
            "nearest valid rope_fraction: 0.888889",
        ),
        (
            {"position": "rotary", "rope_fraction": 0.3, "dim": 32},
            "rope_fraction (0.3) x head_dim (8 = dim / num_heads) = 2.4 must be even for position ('rotary'); "
            "nearest valid rope_fraction: 0.25 or 0.5",
        ),
        (
            {"position": "rotary", "dim": 4},
            "head_dim (1 = dim / num_heads) must be at least 2 for position ('rotary'); use fewer num_heads",
        ),
    ],
)
def test_refused(changes: dict[str, Any], text: str) -> None:
    assert problems(**changes) == [text]


@pytest.mark.parametrize("name", ["vocab_size", "seq_len", "num_layers", "num_heads", "dim", "num_kv_heads", "ffn_dim"])
def test_sizes_are_positive(name: str) -> None:
    assert problems(**{name: 0}) == [f"{name} (0) must be at least 1"]


def test_all_problems_are_told_together() -> None:
    assert len(problems(num_heads=7, num_kv_heads=2)) == 2
    assert len(problems(num_layers=0, dropout=2.0, position="x")) == 3


def test_an_odd_head_dim_is_fine_without_rotation() -> None:
    GPT2(**{**FITTING, "dim": 36})


def test_the_nearest_rotary_fractions_are_accepted() -> None:
    for dim, fraction in ((36, 0.888889), (32, 0.25), (80, 0.7)):  # 0.7 * 20 is 13.999999999999998, too
        GPT2(**{**FITTING, "dim": dim, "position": "rotary", "rope_fraction": fraction})


def test_nearest_divisors() -> None:
    assert nearest_divisors(1, 6) == "2"
    assert nearest_divisors(5, 12) == "4 or 6"
