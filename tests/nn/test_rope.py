"""Rotary positions: the formula, float32 tables, and what meta devices and conversions must not break."""

from __future__ import annotations

import copy

import pytest
import torch

from modlib.nn.rope import RotaryTable


def test_rotation_equals_complex_multiplication() -> None:
    table = RotaryTable(seq_len=50, rotary_dim=8, theta=10000.0)
    x = torch.randn(2, 50, 3, 8, dtype=torch.float64)
    pairs = torch.complex(x[..., :4], x[..., 4:])
    angles = torch.outer(torch.arange(50.0).double(), 10000.0 ** (-torch.arange(0, 8, 2).double() / 8))
    turned = pairs * torch.polar(torch.ones_like(angles), angles)[:, None]
    expected = torch.cat((turned.real, turned.imag), -1)
    torch.testing.assert_close(table(x).double(), expected, rtol=1e-5, atol=1e-6)


def test_scores_depend_on_the_distance_only() -> None:
    table = RotaryTable(seq_len=64, rotary_dim=16, theta=10000.0)
    q, k = torch.randn(2, 1, 1, 1, 16, generator=torch.Generator().manual_seed(0)).unbind()

    def score(i: int, j: int) -> float:
        return float((table(q, i) * table(k, j)).sum())

    by_distance = [score(40, 40 - distance) for distance in range(24)]
    assert by_distance == pytest.approx([score(60, 60 - distance) for distance in range(24)], abs=1e-4)
    assert max(by_distance) - min(by_distance) > 1


def test_a_fraction_of_the_head_passes_unchanged() -> None:
    table = RotaryTable(seq_len=8, rotary_dim=4, theta=10.0)
    x = torch.randn(1, 8, 2, 10)
    assert torch.equal(table(x)[..., 4:], x[..., 4:])
    assert not torch.equal(table(x)[:, 1:, :, :4], x[:, 1:, :, :4])


def test_bfloat16_inputs_are_rotated_by_float32_tables() -> None:
    """Tables rounded to bfloat16 would be wrong by up to radians at position 4095."""
    table = RotaryTable(seq_len=4096, rotary_dim=128, theta=10000.0).to(torch.bfloat16)
    assert table.cos.dtype == torch.float32
    x = torch.randn(1, 4096, 1, 128)
    exact, rounded = table(x), table(x.bfloat16())
    assert rounded.dtype == torch.bfloat16
    assert (exact - rounded.float()).norm() / exact.norm() < 0.005


def test_tables_are_right_after_meta_and_to_empty() -> None:
    expected = RotaryTable(seq_len=32, rotary_dim=8, theta=10000.0)
    with torch.device("meta"):
        table = RotaryTable(seq_len=32, rotary_dim=8, theta=10000.0)
    assert table.cos.is_meta
    garbage = copy.deepcopy(expected).to_empty(device="cpu")  # from memory to memory, too
    for rebuilt in (table.to_empty(device="cpu"), garbage, expected.half().float()):
        assert torch.equal(rebuilt.cos, expected.cos)
        assert torch.equal(rebuilt.sin, expected.sin)


def test_checkpoints_hold_no_tables() -> None:
    assert RotaryTable(seq_len=32, rotary_dim=8, theta=10000.0).state_dict() == {}
