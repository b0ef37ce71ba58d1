"""A curve as text."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from modlib.tracking.plot import bars, plot

WARMUP_COSINE = [min(1.0, (i + 1) / 20) * (0.55 + 0.45 * math.cos(math.pi * max(0, i - 20) / 180)) for i in range(200)]


def test_a_curve() -> None:
    assert plot([value * 6e-4 for value in WARMUP_COSINE], width=44, height=4, last_x=600) == [
        "0.0006 ┤  ▃████▇▇▆▅▄▃▂▁",
        "       │ ▂██████████████▆▅▄▂▁",
        "       │ ████████████████████▇▆▄▃▂▁",
        "       │████████████████████████████▇▆▅▄▄▄▃",
        "     0 └───────────────────────────────────",
        "        0                               600",
    ]


def test_the_same_in_ascii() -> None:
    lines = plot([value * 6e-4 for value in WARMUP_COSINE], width=44, height=3, last_x=600, ascii_only=True)
    assert "\n".join(lines).isascii()
    assert len(lines) == 5
    assert lines[0].startswith("0.0006 +")
    assert lines[-1].endswith("600")


@given(
    st.lists(st.floats(min_value=0, max_value=1e6), min_size=1, max_size=300),
    st.integers(20, 120),
    st.integers(1, 10),
    st.booleans(),
)
def test_it_always_fits(values: list[float], width: int, height: int, ascii_only: bool) -> None:
    lines = plot(values, width=width, height=height, ascii_only=ascii_only)
    assert len(lines) == height + 2
    assert all(len(line) <= width for line in lines)


def test_a_constant_fills_the_area_and_zero_fills_nothing() -> None:
    full = plot([3e-4] * 5, width=30, height=2)
    assert full[0].count("█") == full[1].count("█") == 30 - len("0.0003") - 3
    assert "█" not in "".join(plot([0.0] * 5, width=30, height=2))


def test_what_is_not_finite_leaves_a_gap() -> None:
    assert plot([], width=30) == []
    assert plot([math.nan, math.inf], width=30) == []
    assert " █" in plot([math.nan, 1.0], width=30, height=1)[0]


def test_the_peak_is_shown_even_between_two_columns() -> None:
    spike = [0.0] * 1000
    spike[501] = 1.0
    assert any("█" in line for line in plot(spike, width=30, height=3))


def test_bars() -> None:
    assert bars([("0", 0), ("1", 1), ("2-3", 16), ("4-7", 9)], width=16) == [
        "  0 │ 0",
        "  1 │▌ 1",
        "2-3 │████████ 16",
        "4-7 │████▌ 9",
    ]
    assert bars([("a", 1000)], width=20, ascii_only=True) == ["a |########### 1,000"]
    assert bars([]) == []
    assert bars([("a", 0)]) == ["a │ 0"]
