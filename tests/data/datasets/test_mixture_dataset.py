from __future__ import annotations

import functools
import logging
import pickle
from collections import Counter
from fractions import Fraction
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modlib.data.batches.collate import LMCollator
from modlib.data.batches.layout import BatchLayout
from modlib.data.batches.loader import DataLoader
from modlib.data.batches.sampler import ShuffledSampler
from modlib.data.datasets.mixture_dataset import (
    MOST_SLOTS,
    MixtureDataset,
    slots_of,
    turns,
)
from modlib.data.datasets.packed_dataset import PackedDataset
from modlib.data.packed.writer import PackedFileWriter
from modlib.data.permutation import KeyedPermutation
from modlib.runtime.errors import ConfigError
from tests.data.datasets.test_combined_dataset import dummies


def mixture(sizes: list[int], weights: list[float], **settings: int) -> MixtureDataset:
    return MixtureDataset(datasets=dummies(*sizes), weights=weights, **settings)


@given(st.lists(st.integers(1, 40), min_size=1, max_size=6))
@settings(max_examples=60)
def test_every_beginning_has_its_shares_to_within_less_than_one(slots: list[int]) -> None:
    """Tijdeman's bound, 1 - 1 / (2 K - 2), in exact fractions."""
    order = turns(slots)
    assert np.bincount(order, minlength=len(slots)).tolist() == slots
    bound = 1 - Fraction(1, max(2 * len(slots) - 2, 1)) if len(slots) > 1 else Fraction(0)
    taken = Counter[int]()
    for turn, source in enumerate(order.tolist(), 1):
        taken[source] += 1
        for number, share in enumerate(slots):
            assert abs(Fraction(turn * share, sum(slots)) - taken[number]) <= bound


@given(
    st.lists(st.tuples(st.integers(1, 30), st.integers(1, 20)), min_size=1, max_size=4),
    st.integers(0, 10**12),
    st.integers(1, 300),
    st.integers(0, 5),
)
@settings(max_examples=60)
def test_any_stretch_has_its_shares(sources: list[tuple[int, int]], start: int, count: int, seed: int) -> None:
    sizes, weights = [size for size, _ in sources], [float(weight) for _, weight in sources]
    dataset = mixture(sizes, weights, seed=seed, num_samples=10**13)
    which, inside = dataset.locate(np.arange(start, start + count))
    for number, weight in enumerate(weights):
        assert abs(int((which == number).sum()) - count * weight / sum(weights)) <= 2
    assert (inside >= 0).all()
    assert (inside < np.array(sizes)[which]).all()


def test_each_source_is_read_in_full_and_then_again_in_another_order() -> None:
    sizes = [7, 40]
    dataset = mixture(sizes, [3.0, 1.0], seed=3, num_samples=400)
    which, inside = dataset.locate(np.arange(400))
    for number, size in enumerate(sizes):
        read = inside[which == number].tolist()
        epochs = [read[start : start + size] for start in range(0, len(read) - size + 1, size)]
        assert len(epochs) >= 2
        assert all(sorted(epoch) == list(range(size)) for epoch in epochs)
        assert epochs[0] != epochs[1]
        assert epochs[0] == KeyedPermutation(size, f"modlib mixture 3 {number} 0")(np.arange(size)).tolist()
    assert dataset.counts() == [int((which == number).sum()) for number in (0, 1)]
    assert dataset.epochs() == [dataset.counts()[0] / 7, dataset.counts()[1] / 40]
    assert dataset.counts(13) == [int((which[:13] == number).sum()) for number in (0, 1)]


def test_a_sample_is_a_function_of_seed_and_index() -> None:
    def at(dataset: MixtureDataset, indices: list[int]) -> list[list[int]]:
        return [part.tolist() for part in dataset.locate(np.array(indices))]

    dataset = mixture([50, 30], [0.7, 0.3], num_samples=10_000)
    everything = dataset.locate(np.arange(10_000))
    scattered = np.random.default_rng(0).integers(0, 10_000, 200)
    fresh = mixture([50, 30], [0.7, 0.3], num_samples=10**15)  # the length changes nothing
    for found, expected in zip(fresh.locate(scattered), everything, strict=True):
        assert found.tolist() == expected[scattered].tolist()
    assert at(dataset, [10**14 + 5]) == at(pickle.loads(pickle.dumps(dataset)), [10**14 + 5])
    other = mixture([50, 30], [0.7, 0.3], seed=1, num_samples=10_000)
    assert at(other, list(range(50))) != at(dataset, list(range(50)))
    which, inside = dataset.locate(np.arange(20))
    rows = [dataset.sources[source][index].tolist() for source, index in zip(which.tolist(), inside.tolist())]
    assert dataset.__getitems__(range(20)).tolist() == rows
    assert dataset[19].tolist() == dataset[19 - 10_000].tolist() == rows[19]


def test_one_epoch_reads_every_source_at_least_once() -> None:
    dataset = mixture([10, 100, 1], [0.5, 0.25, 0.25])
    which, inside = dataset.locate(np.arange(len(dataset)))
    assert len(dataset) == 400
    assert [len(set(inside[which == number].tolist())) for number in range(3)] == [10, 100, 1]
    assert dataset.epochs() == [20.0, 1.0, 100.0]
    assert dataset.num_tokens == 400 * 4


@pytest.mark.parametrize(
    ("weights", "slots"),
    [
        ([1.0], [1]),
        ([2.0, 1.0], [2, 1]),
        ([0.7, 0.2, 0.1], [7, 2, 1]),
        ([0.3333, 0.6667], [3333, 6667]),
        ([1e-3, 1e-3], [1, 1]),
        ([5, 15], [1, 3]),
    ],
)
def test_shares_are_exact_as_written(weights: list[float], slots: list[int]) -> None:
    assert slots_of(weights) == slots


@given(st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=6))
def test_other_shares_are_rounded(weights: list[float]) -> None:
    slots = slots_of(weights)
    assert sum(slots) <= MOST_SLOTS + len(slots)
    for weight, number in zip(weights, slots, strict=True):
        assert number >= 1
        assert number / sum(slots) == pytest.approx(weight / sum(weights), abs=(len(slots) + 1) / MOST_SLOTS)


def test_shares_and_epochs_are_reported(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "modlib"):
        mixture([10, 100], [0.25, 0.75], num_samples=400)
    assert caplog.messages == ["mixture of dummy, dummy: dummy 25.00% (10.00 epochs), dummy 75.00% (3.00 epochs)"]


def test_fingerprint_tells_shares_seed_and_length() -> None:
    settings = [([1.0, 2.0], {}), ([2.0, 1.0], {}), ([1.0, 2.0], {"seed": 1}), ([1.0, 2.0], {"num_samples": 9})]
    assert len({mixture([5, 6], weights, **more).fingerprint for weights, more in settings}) == 4
    assert mixture([5, 6], [0.5, 1.0]).fingerprint == mixture([5, 6], [1.0, 2.0]).fingerprint


def test_wrong_settings_are_refused_together() -> None:
    with pytest.raises(ConfigError) as caught:
        mixture([1, 2], [0.5, 0.0, float("nan")], num_samples=0, seed=-1)
    assert caught.value.problems == [
        "weights (3) must be as many as datasets (2); give one each",
        "weights ([0.5, 0.0, nan]) must all be above 0; leave out a dataset that is not wanted",
        "num_samples (0) must be at least 1; use None to read every source once",
        "seed (-1) must be at least 0; choose another seed",
    ]
    with pytest.raises(ConfigError, match=r"datasets of mixture \(0\) must be at least one"):
        mixture([], [])


def global_batches(dataset: MixtureDataset, start: int, count: int, world_size: int, micro: int) -> list[list[int]]:
    """First tokens of the samples of steps start..start+count-1, as so many ranks load them together."""
    accumulation = 12 // (world_size * micro)
    loaders = [
        DataLoader(
            dataset=dataset,
            sampler=ShuffledSampler(seed=1, shuffle=False, num_samples=len(dataset)),
            collate=LMCollator(),
            layout=BatchLayout(micro, accumulation, world_size),
            rank=rank,
        )
        for rank in range(world_size)
    ]
    ranks = [list(islice(loader.iterate(start), count)) for loader in loaders]
    for loader in loaders:
        loader.close()
    return [
        [token for part in range(accumulation) for rank in ranks for token in rank[step][part][0][:, 0].tolist()]
        for step in range(count)
    ]


def test_resumed_on_another_world_size_the_global_batches_are_the_same(tmp_path: Path) -> None:
    sources = []
    for number, size in enumerate((21, 50)):  # windows; the first token of each tells which it is
        path = tmp_path / f"{number}.packed"
        with PackedFileWriter(path, vocab_size=2000) as writer:
            writer.write(np.arange(size * 5) + 1000 * number)
        sources.append(functools.partial(PackedDataset, path=str(path), seq_len=4, reuse_last_target=False))
    dataset = MixtureDataset(datasets=sources, weights=[0.7, 0.3], num_samples=12 * 20, seed=5)
    whole = global_batches(dataset, 0, 20, world_size=1, micro=12)
    for first, second in (((2, 3), (3, 4)), ((3, 2), (1, 4)), ((4, 3), (12, 1))):
        resumed = global_batches(dataset, 0, 7, *first) + global_batches(dataset, 7, 13, *second)
        assert resumed == whole
    flat = [token for step in whole for token in step]
    for steps in (1, 7, 20):
        taken = Counter(token // 1000 for token in flat[: 12 * steps])
        assert dataset.counts(12 * steps) == [taken[0], taken[1]]
        assert dataset.epochs(12 * steps) == [taken[0] / 21, taken[1] / 50]
    for number, size in enumerate((21, 50)):
        of_source = [token for token in flat if token // 1000 == number]
        for start in range(0, len(of_source) - size + 1, size):
            assert sorted(of_source[start : start + size]) == [1000 * number + 5 * window for window in range(size)]
