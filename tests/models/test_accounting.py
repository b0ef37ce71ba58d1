"""Costs from sizes alone; test_gpt2.py holds them against real models."""

from __future__ import annotations

from typing import Any

import pytest

from modlib.models.accounting import flops_per_token
from modlib.runtime.errors import ConfigError


def test_conventions() -> None:
    sizes: dict[str, Any] = {"multiplied_parameters": 1000, "num_layers": 2, "attention_dim": 8, "seq_len": 10}
    assert flops_per_token(**sizes) == 6 * 1000 + 12 * 2 * 8 * 10
    assert flops_per_token(**sizes, convention="causal_half") == 6 * 1000 + 6 * 2 * 8 * 10
    with pytest.raises(ConfigError, match=r"convention \('mine'\) must be 'palm' or 'causal_half'"):
        flops_per_token(**sizes, convention="mine")  # type: ignore[arg-type]
