from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modlib.data.permutation import KeyedPermutation


@pytest.mark.parametrize("size", [*range(1, 70), 97, 127, 128, 129, 255, 256, 257, 1021, 4096, 65_537, 100_003])
def test_every_size_gives_a_bijection(size: int) -> None:
    values = KeyedPermutation(size, "key")(np.arange(size))
    assert np.array_equal(np.sort(values), np.arange(size))


@given(st.integers(1, 20_000), st.text())
@settings(max_examples=60)
def test_any_size_and_key_give_a_bijection(size: int, key: str) -> None:
    assert len(np.unique(KeyedPermutation(size, key)(np.arange(size)))) == size


def test_element_does_not_depend_on_what_is_asked_with_it() -> None:
    permutation = KeyedPermutation(10_007, "key")
    together = permutation(np.arange(10_007))
    assert all(int(permutation(np.array([i]))[0]) == together[i] for i in range(0, 10_007, 501))


@pytest.mark.parametrize("size", [10**12, 10**12 + 39, 2**40 - 1, 2**62])
def test_huge_sizes_stay_inside_and_do_not_collide(size: int) -> None:
    permutation = KeyedPermutation(size, "key")
    rng = np.random.default_rng(0)
    indices = np.unique(np.concatenate([rng.integers(0, size, 50_000), np.arange(1000), size - 1 - np.arange(1000)]))
    values = permutation(indices)
    assert values.min() >= 0
    assert values.max() < size
    assert len(np.unique(values)) == len(indices)
    # Spread evenly: sixteen equal parts of the range each get their share.
    counts = np.bincount((values.astype(np.float64) / size * 16).astype(int), minlength=16)
    assert chi_square(counts) < 60


def test_known_values_never_change() -> None:
    """A run continued with a newer modlib must see the same order."""
    assert KeyedPermutation(10, "key")(np.arange(10)).tolist() == KNOWN_10
    assert KeyedPermutation(10**12, "key")(np.array([0, 1, 10**12 - 1])).tolist() == KNOWN_LARGE


KNOWN_10 = [5, 1, 3, 6, 4, 0, 8, 7, 2, 9]
KNOWN_LARGE = [185119165153, 761343433105, 846870210389]


def chi_square(counts: np.ndarray) -> float:
    expected = counts.sum() / len(counts)
    return float(((counts - expected) ** 2 / expected).sum())


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 3, 5, 8, 24])
def test_over_keys_every_place_is_equally_likely(size: int) -> None:
    draws = 3000
    counts = np.zeros((size, size))
    for key in range(draws):
        counts[np.arange(size), KeyedPermutation(size, str(key))(np.arange(size))] += 1
    assert sum(chi_square(row) for row in counts) < size * (size - 1) + 8 * math.sqrt(2 * size * size)


def test_over_keys_every_permutation_of_four_appears() -> None:
    seen = {tuple(KeyedPermutation(4, str(key))(np.arange(4)).tolist()) for key in range(1500)}
    assert len(seen) == math.factorial(4)


def test_neighbours_go_far_apart() -> None:
    values = KeyedPermutation(100_000, "key")(np.arange(100_000)).astype(np.float64)
    assert abs(np.corrcoef(values[:-1], values[1:])[0, 1]) < 0.02
    assert abs(np.corrcoef(values, np.arange(100_000))[0, 1]) < 0.02
    other = KeyedPermutation(100_000, "other")(np.arange(100_000)).astype(np.float64)
    assert abs(np.corrcoef(values, other)[0, 1]) < 0.02
    assert (values == other).sum() < 12  # one on average


@pytest.mark.parametrize("size", [0, -1, 2**62 + 1])
def test_impossible_sizes_are_refused(size: int) -> None:
    with pytest.raises(ValueError, match=rf"size \({size}\) must be between 1 and 2\^62"):
        KeyedPermutation(size, "key")
