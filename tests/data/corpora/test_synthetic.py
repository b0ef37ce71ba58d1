from __future__ import annotations

import math
from collections import Counter
from itertools import islice, pairwise

import numpy as np
import pytest

from modlib.data.corpora.synthetic import (
    KINDS,
    copying,
    entropy_rate,
    markov,
)
from modlib.runtime.errors import ConfigError


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_seed_makes_the_same_text(kind: str) -> None:
    one, same, other = (list(islice(KINDS[kind](seed, 200).documents, 3)) for seed in (1, 1, 2))
    assert one == same != other
    assert len(set(one)) == 3


def test_entropy_of_known_chains() -> None:
    assert entropy_rate(np.full((4, 4), 0.25)) == pytest.approx(2.0)
    assert entropy_rate(np.array([[0.0, 1.0], [1.0, 0.0]])) == pytest.approx(0.0)  # a cycle
    # stationary (2/3, 1/3): 2/3 H(0.1) + 1/3 H(0.2)
    entropy = [-p * math.log2(p) - (1 - p) * math.log2(1 - p) for p in (0.1, 0.2)]
    assert entropy_rate(np.array([[0.9, 0.1], [0.2, 0.8]])) == pytest.approx(2 / 3 * entropy[0] + entropy[1] / 3)


def test_a_markov_text_has_its_entropy() -> None:
    made = markov(3, 1000)
    text = "".join(islice(made.documents, 300))
    pairs, letters = Counter(pairwise(text)), Counter(text[:-1])
    total = sum(pairs.values())
    measured = -sum(count / total * math.log2(count / letters[pair[0]]) for pair, count in pairs.items())
    assert made.bits_per_character == pytest.approx(measured, rel=0.01)


@pytest.mark.parametrize(("kind", "least", "of"), [("arithmetic", 12, "a sum"), ("copy", 18, "8 letters and the same")])
def test_a_document_holds_a_line(kind: str, least: int, of: str) -> None:
    assert next(KINDS[kind](0, least).documents).count("\n") == 1
    with pytest.raises(ConfigError, match=rf"^length \({least - 1}\) must be at least {least}, the characters of {of}"):
        KINDS[kind](0, least - 1)


def test_sums_are_right_and_copies_are_equal() -> None:
    for line in next(KINDS["arithmetic"](0, 500).documents).splitlines():
        left, right = line.split(" = ")
        assert sum(map(int, left.split(" + "))) % 97 == int(right)
    lines = next(copying(0, 500).documents).splitlines()
    assert len(lines) == 27
    assert all(len(line) == 17 and line[:8] == line[9:] for line in lines)
