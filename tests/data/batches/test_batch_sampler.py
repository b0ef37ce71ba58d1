"""Which samples a step has: one global order for any number of ranks, and three ways to end an epoch."""

from __future__ import annotations

import tracemalloc
from fractions import Fraction
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modlib.data.batches.batch_sampler import BatchSampler
from modlib.data.batches.layout import BatchLayout
from modlib.data.batches.sampler import FirstEpochAgain, ShuffledSampler
from modlib.runtime.errors import ConfigError, DataError


def global_batch(step: int, num_samples: int, world_size: int, micro: int, accum: int, **settings: Any) -> list[int]:
    """The samples of a step in the global order, put together from what each rank gets."""
    shares = []
    for rank in range(world_size):
        sampler = ShuffledSampler(seed=3, num_samples=num_samples)
        batches = BatchSampler(
            sampler=sampler,
            layout=BatchLayout(micro, accum, world_size),
            rank=rank,
            **settings,
        )
        shares.append(batches.indices(step).reshape(accum, micro))
    return np.stack(shares, axis=1).ravel().tolist()


@pytest.mark.parametrize("remainder", ["carry", "drop", "pad"])
def test_the_global_order_does_not_depend_on_the_ranks(remainder: str) -> None:
    layouts = [(1, 8, 3), (2, 4, 3), (3, 4, 2), (4, 6, 1), (6, 4, 1), (8, 3, 1), (8, 1, 3), (1, 24, 1)]
    for step in (0, 3, 4, 5, 9, 117):
        whole = global_batch(step, 103, 1, 24, 1, remainder=remainder)
        for world_size, micro, accum in layouts:
            assert global_batch(step, 103, world_size, micro, accum, remainder=remainder) == whole


@pytest.mark.parametrize("remainder", ["carry", "drop", "pad"])
def test_one_to_eight_ranks_have_one_order(remainder: str) -> None:
    size = 840  # divisible by all of them
    for step in (0, 1, 2, 3, 50):
        whole = global_batch(step, 2000, 1, size, 1, remainder=remainder)
        for world_size in range(2, 9):
            assert global_batch(step, 2000, world_size, size // world_size, 1, remainder=remainder) == whole


def epochs(remainder: str, num_samples: int, size: int, num_epochs: int) -> list[list[int]]:
    sampler = ShuffledSampler(seed=1, num_samples=num_samples)
    batches = BatchSampler(sampler=sampler, layout=BatchLayout(size), remainder=remainder)  # type: ignore[arg-type]
    found: list[list[int]] = [[] for _ in range(num_epochs + 1)]
    step = 0
    while batches.epoch(step) < num_epochs:
        found[batches.epoch(step)] += batches.indices(step).tolist()
        step += 1
    return found[:num_epochs]


@given(st.integers(1, 60), st.integers(1, 60))
def test_drop_and_pad_keep_epochs_apart(num_samples: int, size: int) -> None:
    size = min(size, num_samples)
    dropped = epochs("drop", num_samples, size, 3)
    padded = epochs("pad", num_samples, size, 3)
    for few, many in zip(dropped, padded, strict=True):
        assert len(few) == num_samples // size * size
        assert len(set(few)) == len(few)
        assert len(many) == -(-num_samples // size) * size
        assert set(many) == set(range(num_samples))
        assert many[num_samples:] == many[: len(many) - num_samples]  # filled up with the epoch's own beginning
    if num_samples > 8 and len(dropped[0]) > 8:
        assert dropped[0] != dropped[1]


@given(st.integers(1, 60), st.integers(1, 60))
def test_carry_sees_every_sample_once_per_epoch(num_samples: int, size: int) -> None:
    size = min(size, num_samples)
    sampler = ShuffledSampler(seed=1, num_samples=num_samples)
    batches = BatchSampler(sampler=sampler, layout=BatchLayout(size))
    stream = np.concatenate([batches.indices(step) for step in range(-(-2 * num_samples // size))])
    for start in (0, num_samples):
        assert sorted(stream[start : start + num_samples]) == list(range(num_samples))


@pytest.mark.parametrize(
    ("remainder", "per_epoch", "in_three", "for_five"),
    [("carry", Fraction(103, 24), 12, 2), ("drop", Fraction(4), 12, 2), ("pad", Fraction(5), 15, 1)],
)
def test_counts(remainder: Any, per_epoch: Fraction, in_three: int, for_five: int) -> None:
    sampler = ShuffledSampler(seed=0, num_samples=103)
    batches = BatchSampler(sampler=sampler, layout=BatchLayout(24), remainder=remainder)
    assert batches.steps_per_epoch == per_epoch
    assert batches.num_steps(3) == in_three
    assert batches.num_epochs(5) == for_five
    places = [(batches.epoch(step), batches.position(step)) for step in range(20)]
    assert places[0] == (0, 0)
    assert all(first < second for first, second in pairwise(places))


def test_positions_near_a_trillion_cost_nothing() -> None:
    tracemalloc.start()
    try:
        sampler = ShuffledSampler(seed=0, num_samples=10**12)
        batches = BatchSampler(sampler=sampler, layout=BatchLayout(16, 4, 8), rank=7)
        found = batches.indices(10**12 // 512 - 1)
        _, peak = tracemalloc.get_traced_memory()  # numpy's arrays are in it
    finally:
        tracemalloc.stop()
    assert peak < 10**6
    assert len(set(found.tolist())) == 64
    assert 0 <= found.min() <= found.max() < 10**12
    assert batches.epoch(10**12 // 512 + 1) == 1


def test_the_first_epoch_again() -> None:
    sampler = ShuffledSampler(seed=0, num_samples=10)
    again = FirstEpochAgain(sampler)
    assert again.indices(7, 25).tolist() == np.tile(sampler.indices(0, 10), 4)[7:32].tolist()
    assert sampler.indices(0, 10).tolist() != sampler.indices(10, 10).tolist()
    assert again.indices(3, 0).tolist() == []


def test_wrong_values_are_all_named() -> None:
    sampler = ShuffledSampler(seed=0, num_samples=10)
    with pytest.raises(ConfigError) as caught:
        BatchSampler(sampler=sampler, layout=BatchLayout(0, 1, 2), rank=2, remainder="keep")  # type: ignore[arg-type]
    assert caught.value.problems == [
        "micro_batch_size (0) must be at least 1; set it to 1 or more",
        "rank (2) must be at least 0 and below world_size (2); check the launcher",
        "remainder ('keep') must be 'carry', 'drop' or 'pad'; choose one of them",
    ]
    with pytest.raises(DataError, match=r"windows in the dataset \(10\) must be at least one global batch \(12 = "):
        BatchSampler(sampler=sampler, layout=BatchLayout(3, 2, 2))
