"""Quantities in words, and the loss in its other units."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modlib.runtime.units import (
    bits_per_byte,
    format_bytes,
    format_count,
    format_flops,
    format_percent,
    format_seconds,
    perplexity,
)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (950, "950"), (1000, "1k"), (1234, "1.23k"), (12345.6, "12.3k"), (999_999, "1M"), (124_439_808, "124M"),
     (3.4e9, "3.4B"), (15e12, "15T"), (15e16, "150000T"), (-1500, "-1.5k"), (0.25, "0.25"),
     (math.nan, "nan"), (math.inf, "inf")],
)  # fmt: skip
def test_counts(value: float, text: str) -> None:
    assert format_count(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(3.4e15, "3.4 PFLOP"), (0, "0 FLOP"), (312e12, "312 TFLOP"), (6e23, "600 ZFLOP"), (999.6e9, "1 TFLOP")],
)  # fmt: skip
def test_flops(value: float, text: str) -> None:
    assert format_flops(value) == text
    assert format_flops(value, per_second=True) == text + "/s"


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0 B"), (512, "512 B"), (1024, "1 KiB"), (1.2 * 2**30, "1.2 GiB"), (2**20 - 1, "1 MiB"), (5 * 2**40, "5 TiB")],
)  # fmt: skip
def test_bytes(value: float, text: str) -> None:
    assert format_bytes(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.001, "0.00s"), (0.42, "0.42s"), (9.94, "9.9s"), (9.96, "10s"), (59.4, "59s"), (59.6, "1m 00s"), (192, "3m 12s"),
     (3599.6, "1h 00m"), (5 * 3600 + 7 * 60, "5h 07m"), (12 * 86400 + 3 * 3600, "12d 03h"), (-192, "-3m 12s"),
     (math.inf, "?"), (math.nan, "?")],
)  # fmt: skip
def test_seconds(value: float, text: str) -> None:
    assert format_seconds(value) == text


@given(st.floats(min_value=1, max_value=1e15))
def test_a_formatted_count_is_within_half_a_percent(value: float) -> None:
    text = format_count(value)
    factor = {"k": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}.get(text[-1], 1.0)
    assert math.isclose(float(text.rstrip("kMBT")) * factor, value, rel_tol=0.005)
    assert len(text) <= 5 or value >= 1e15


def test_percent() -> None:
    assert format_percent(0.3412) == "34.1%"


def test_perplexity_does_not_overflow() -> None:
    assert perplexity(math.log(50257)) == pytest.approx(50257)
    assert perplexity(1000.0) == math.inf
    assert math.isnan(perplexity(math.nan))


def test_bits_per_byte() -> None:
    # a uniform guess over 256 bytes with one byte per token is 8 bits per byte
    assert bits_per_byte(math.log(256), 1.0) == pytest.approx(8.0)
    assert bits_per_byte(math.log(256), 4.0) == pytest.approx(2.0)


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan])
def test_bits_per_byte_refuses_no_bytes(bad: float) -> None:
    with pytest.raises(ValueError, match=r"bytes_per_token \(.*\) must be greater than 0; use the packed file's bytes"):
        bits_per_byte(1.0, bad)
