"""Comparing two metrics.jsonl: equal to the bit, or the first number that is not."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from modlib.tracking.comparison import compare, last_step

LINES: list[dict[str, Any]] = [
    {"step": 1, "time": 1.0, "train/loss": 3.5, "train/grad_norm": 0.1, "throughput/mfu": 0.3, "memory/peak_gib": 1.0},
    {"step": 2, "time": 2.0, "train/loss": 3.25, "train/grad_norm": 0.2},
    {"step": 2, "time": 2.5, "val/validation/loss": 4.0},
]


def write(path: Path, lines: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture
def before(tmp_path: Path) -> Path:
    return write(tmp_path / "before.jsonl", LINES)


def test_equal_whatever_speed_and_memory_were(before: Path, tmp_path: Path) -> None:
    others = [{**LINES[0], "time": 9.0, "throughput/mfu": 0.1, "memory/peak_gib": 2.0}, *LINES[1:]]
    found = compare(before, write(tmp_path / "after.jsonl", others), 2)
    assert (found.steps, found.metrics, found.values, found.first_difference) == (2, 3, 5, None)


@pytest.mark.parametrize(
    ("number", "metric", "value", "text"),
    [
        (1, "train/loss", math.nextafter(3.25, 9), "step 2, train/loss: 3.25 in the run, 3.2500000000000004 now"),
        (2, "val/validation/loss", None, "step 2, val/validation/loss: 4.0 in the run, none now"),
        (0, "train/new", 1.0, "step 1, train/new: none in the run, 1.0 now"),
        (0, "train/loss", "NaN", "step 1, train/loss: 3.5 in the run, nan now"),
    ],
)  # fmt: skip
def test_the_first_difference(before: Path, tmp_path: Path, number: int, metric: str, value: Any, text: str) -> None:
    lines = [dict(line) for line in LINES]
    lines[number][metric] = value
    if value is None:
        del lines[number][metric]
    assert str(compare(before, write(tmp_path / "after.jsonl", lines), 2).first_difference) == text


def test_only_up_to_a_step(before: Path, tmp_path: Path) -> None:
    after = write(tmp_path / "after.jsonl", [LINES[0], {"step": 2, "train/loss": 0.0}])
    assert compare(before, after, 1).first_difference is None
    assert compare(before, after, 2).first_difference is not None


def test_nan_is_nan_and_minus_zero_is_not_zero(tmp_path: Path) -> None:
    a = write(tmp_path / "a.jsonl", [{"step": 1, "train/loss": "NaN", "train/zero": 0.0}])
    b = write(tmp_path / "b.jsonl", [{"step": 1, "train/loss": "NaN", "train/zero": -0.0}])
    assert str(compare(a, b, 1).first_difference) == "step 1, train/zero: 0.0 in the run, -0.0 now"
    assert compare(a, a, 1).first_difference is None


def test_last_step(before: Path, tmp_path: Path) -> None:
    assert last_step(before) == 2
    assert last_step(tmp_path / "none.jsonl") == 0
