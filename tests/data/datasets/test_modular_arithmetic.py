"""Equations modulo a prime: all of them, right, each in one part, the answer alone a target."""

from __future__ import annotations

import numpy as np
import pytest

from modlib.data.batches.collate import LMCollator
from modlib.data.datasets.modular_arithmetic import ModularArithmetic, Operation
from modlib.runtime.errors import ConfigError, DataError


@pytest.mark.parametrize("operation", ["add", "subtract", "divide"])
def test_every_equation_is_right_and_in_one_part(operation: Operation) -> None:
    parts = [
        ModularArithmetic(modulus=23, operation=operation, split=split)  # type: ignore[arg-type]
        for split in ("train", "validation")
    ]
    rows = np.concatenate([part.equations for part in parts]).astype(int)
    assert len({(a, b) for a, _, b, _, _ in rows.tolist()}) == len(rows) == 23 * (22 if operation == "divide" else 23)
    assert len(parts[0]) == len(rows) // 2
    for a, sign, b, equals, c in rows.tolist():
        assert (sign, equals) == (23, 24)
        left, right = {"add": (a + b, c), "subtract": (a - b, c), "divide": (a, b * c)}[operation]
        assert left % 23 == right % 23


def test_the_split_follows_from_the_seed() -> None:
    first = ModularArithmetic(split="train")
    assert len(first) == 4704
    assert np.array_equal(first.equations, ModularArithmetic(split="train").equations)
    other = ModularArithmetic(split="train", seed=1)
    assert not np.array_equal(first.equations, other.equations)
    assert first.fingerprint != other.fingerprint


def test_only_the_answer_is_a_target() -> None:
    data = ModularArithmetic(split="validation")
    inputs, targets = LMCollator()(data.__getitems__([3, 5]))
    assert targets[:, :-1].eq(-100).all()
    assert targets[:, -1].tolist() == data.equations[[3, 5], -1].tolist()
    assert inputs.tolist() == data.equations[[3, 5], :-1].tolist()
    assert data[3].ids.tolist() == data.equations[3].tolist()


def test_what_is_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        ModularArithmetic(modulus=91, operation="power", split="train", train_fraction=0.0, seed=-1)  # type: ignore[arg-type]
    assert [problem.partition(" must ")[0] for problem in caught.value.problems] == [
        "modulus (91)", "operation ('power')", "train_fraction (0.0)", "seed (-1)",
    ]  # fmt: skip
    with pytest.raises(ConfigError, match=r"train_fraction \(0.001\) must leave an equation in train"):
        ModularArithmetic(modulus=5, split="train", train_fraction=0.001)
    with pytest.raises(DataError, match=r"tokens of add modulo 97:train \(99\) must be at most the model's vocab_size"):
        ModularArithmetic(split="train").check_vocabulary(98)
