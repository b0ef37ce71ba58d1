from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modlib.data.batches.sampler import ShuffledSampler
from modlib.runtime.errors import ConfigError, DataError


@given(st.integers(1, 10_000), st.integers(0, 2**63), st.booleans())
@settings(max_examples=40)
def test_every_epoch_visits_every_sample_once(num_samples: int, seed: int, shuffle: bool) -> None:
    sampler = ShuffledSampler(seed=seed, shuffle=shuffle, num_samples=num_samples)
    for epoch in range(2):
        assert np.array_equal(np.sort(sampler.indices(epoch * num_samples, num_samples)), np.arange(num_samples))


@given(st.integers(1, 9000), st.lists(st.integers(0, 3000), min_size=1, max_size=8), st.integers(0, 30_000))
@settings(max_examples=15)
def test_order_does_not_depend_on_how_it_is_asked_for(num_samples: int, cuts: list[int], start: int) -> None:
    whole = ShuffledSampler(seed=1, num_samples=num_samples).indices(start, sum(cuts))
    sampler = ShuffledSampler(seed=1, num_samples=num_samples)
    parts = []
    for count in cuts:
        parts.append(sampler.indices(start, count))
        start += count
    assert np.array_equal(whole, np.concatenate(parts))


def test_without_shuffle_the_order_is_the_data_s() -> None:
    sampler = ShuffledSampler(seed=1, shuffle=False, num_samples=5)
    assert sampler.indices(3, 9).tolist() == [3, 4, 0, 1, 2, 3, 4, 0, 1]


def test_seeds_and_epochs_have_orders_of_their_own() -> None:
    orders = {
        tuple(ShuffledSampler(seed=seed, num_samples=50).indices(epoch * 50, 50).tolist())
        for seed in range(4)
        for epoch in range(4)
    }
    assert len(orders) == 16


def test_far_positions_of_a_huge_dataset() -> None:
    sampler = ShuffledSampler(seed=0, num_samples=10**12)
    last = sampler.indices(10**12 - 3, 6)
    assert last.dtype == np.int64
    assert len(set(last.tolist())) == 6
    assert sampler.indices(5 * 10**12 + 7, 2).max() < 10**12


def test_order_is_the_same_after_pickling_and_in_later_versions() -> None:
    sampler = ShuffledSampler(seed=7, num_samples=1000)
    first = sampler.indices(0, 5)
    assert len(pickle.dumps(sampler)) < 1000
    assert np.array_equal(pickle.loads(pickle.dumps(sampler)).indices(0, 5), first)
    assert first.tolist() == KNOWN
    assert len(sampler) == 1000


KNOWN = [817, 603, 638, 163, 805]


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"seed \(-1\) must be at least 0"):
        ShuffledSampler(seed=-1, num_samples=3)
    with pytest.raises(DataError, match=r"num_samples \(0\) must be at least 1; the dataset is empty"):
        ShuffledSampler(seed=0, num_samples=0)
    with pytest.raises(ValueError, match=r"start \(-1\) and count \(2\) must be at least 0"):
        ShuffledSampler(seed=0, num_samples=3).indices(-1, 2)
    assert ShuffledSampler(seed=0, num_samples=3).indices(2, 0).tolist() == []
