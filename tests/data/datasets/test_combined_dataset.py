from __future__ import annotations

import functools
import pickle
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modlib.data.batches.collate import LMCollator
from modlib.data.datasets.combined_dataset import CombinedDataset
from modlib.data.datasets.dummy_dataset import DummyDataset
from modlib.data.datasets.mixture_dataset import MixtureDataset
from modlib.data.datasets.packed_dataset import PackedDataset
from modlib.data.datasets.packed_documents import PackedDocuments
from modlib.data.datasets.windows import Windows
from modlib.runtime.errors import ConfigError, DataError
from tests.data.conftest import MakePacked

Source = Callable[[], Any]


def dummies(*sizes: int, seq_len: int = 4, vocab_size: int = 100) -> list[Source]:
    return [
        functools.partial(DummyDataset, num_samples=size, seq_len=seq_len, vocab_size=vocab_size, seed=seed)
        for seed, size in enumerate(sizes)
    ]


@given(st.lists(st.integers(1, 9), min_size=1, max_size=5))
@settings(max_examples=30)
def test_it_is_the_concatenation(sizes: list[int]) -> None:
    combined = CombinedDataset(datasets=dummies(*sizes))
    rows = [source()[index].tolist() for source, size in zip(dummies(*sizes), sizes) for index in range(size)]
    count = len(combined)
    assert count == sum(sizes)
    assert [combined[index].tolist() for index in range(count)] == rows
    assert [combined[index - count].tolist() for index in range(count)] == rows  # as a list's negative indices
    order = np.random.default_rng(0).permutation(count)
    assert combined.__getitems__(order).tolist() == [rows[index] for index in order]
    assert combined.num_tokens == 4 * count


def test_what_is_said_about_it(make_packed: MakePacked) -> None:
    paths = [str(make_packed(size, 100, name, tokenizer_fingerprint="a" * 64)) for name, size in (("a", 41), ("b", 81))]
    sources = [functools.partial(PackedDataset, path=path, seq_len=10) for path in paths]
    combined = CombinedDataset(datasets=sources)
    assert combined.name == f"combined of {paths[0]}, {paths[1]}"
    assert combined.seq_len == 10
    assert combined.bytes_per_token == 3.0
    assert combined.num_documents == 2
    assert combined.tokenizer_fingerprint == "a" * 64
    assert combined.fingerprint != CombinedDataset(datasets=sources[::-1]).fingerprint
    assert combined.tokenizer_path is None
    combined.check_vocabulary(100)
    with pytest.raises(DataError, match=r"\(80\) must be below the model's vocab_size \(80\)"):
        combined.check_vocabulary(80)
    with pytest.raises(DataError, match="must be the tokenizer in use"):
        combined.check_tokenizer("b" * 64)
    combined.check_unchanged()
    again = pickle.loads(pickle.dumps(combined))
    assert again.__getitems__([0, 11]).tolist() == combined.__getitems__([0, 11]).tolist()


def test_sources_of_different_types(make_packed: MakePacked) -> None:
    narrow, wide = str(make_packed(41, 200, "narrow")), str(make_packed(300, 60_000, "wide"))
    plain = [functools.partial(PackedDataset, path=path, seq_len=10) for path in (narrow, wide)]
    rows = CombinedDataset(datasets=plain).__getitems__([0, 10])
    assert rows.dtype == np.int64
    assert rows[0].tolist() == list(range(11))
    padding = functools.partial(PackedDocuments, path=narrow, seq_len=10, long_documents="cut")
    combined = CombinedDataset(datasets=[plain[0], padding])
    windows = combined.__getitems__([3, 7, 0])
    assert isinstance(windows, Windows)
    assert windows.index is not None
    assert windows.index.tolist() == [3, 7, 0]
    _, targets = LMCollator()(windows)
    assert targets.tolist()[0] == list(range(31, 41))
    assert targets.tolist()[1] == list(range(31, 41))
    assert windows.row(1).ids.tolist() == combined[7].ids.tolist()
    named = [
        functools.partial(DummyDataset, num_samples=2, seq_len=4, samples={"a": {"shape": (2,), "dtype": "float32"}})
    ]
    samples = CombinedDataset(datasets=named * 2).__getitems__([3, 0])
    assert [sample["a"].shape for sample in samples] == [(2,), (2,)]


class Plain:
    """A dataset with the least of the Protocol."""

    name, seq_len, tokenizer_fingerprint, tokenizer_path = "plain", 4, "", None
    fingerprint, num_tokens, num_documents, bytes_per_token = "plain", 8, None, 0.0

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> Sequence[int]:
        return np.full(5, index)

    def check_vocabulary(self, vocab_size: int) -> None:
        pass


def test_source_with_the_least_of_the_protocol() -> None:
    combined = CombinedDataset(datasets=[Plain, *dummies(2)])
    assert combined.__getitems__([1, 0]).tolist() == [[1] * 5, [0] * 5]
    assert combined.num_documents is None
    assert combined.bytes_per_token == 0.0
    combined.check_tokenizer("any")
    combined.check_unchanged()


@given(st.integers(-20, 20))
def test_indices_out_of_range_are_refused(index: int) -> None:
    combined = CombinedDataset(datasets=dummies(3, 4))
    if -7 <= index < 7:
        assert combined[index].tolist() == combined[index % 7].tolist()
    else:
        with pytest.raises(IndexError, match=r"must be below the 7 samples of combined of dummy, dummy"):
            combined[index]
    if not 0 <= index < 7:
        with pytest.raises(IndexError, match="must be 0 to 6"):
            combined.__getitems__([index])


def test_sources_that_do_not_fit_are_refused(make_packed: MakePacked) -> None:
    with pytest.raises(ConfigError, match=r"seq_len of the datasets of combined \(\[4, 5\]\) must be equal; set all"):
        CombinedDataset(datasets=[*dummies(1), *dummies(1, seq_len=5)])
    with pytest.raises(ConfigError, match=r"datasets of combined \(0\) must be at least one; e.g. datasets = "):
        CombinedDataset(datasets=[])
    sources = [
        functools.partial(
            PackedDataset, path=str(make_packed(50, name=name, tokenizer_fingerprint=name * 64)), seq_len=4
        )
        for name in "ab"
    ]
    with pytest.raises(DataError, match=r"tokenizers of the datasets of combined \(.*/a: aaaaaaaaaaaa, .*/b: bbbbbbbb"):
        CombinedDataset(datasets=sources)


@pytest.mark.parametrize("kind", [CombinedDataset, functools.partial(MixtureDataset, weights=[2, 1])])
@pytest.mark.parametrize("pads", [False, True])
@pytest.mark.parametrize("both_masked", [False, True])
def test_a_loss_mask_is_handed_on(make_packed: MakePacked, kind: Any, pads: bool, both_masked: bool) -> None:
    paths = [make_packed(60, 100, name, loss_mask=name == "a" or both_masked) for name in ("a", "b")]
    other: Any = functools.partial(PackedDocuments, long_documents="cut") if pads else PackedDataset
    datasets = [functools.partial(one, path=str(path), seq_len=5) for one, path in zip((PackedDataset, other), paths)]
    dataset = kind(datasets=datasets)
    indices = np.arange(len(dataset))
    windows = dataset.__getitems__(indices)
    assert isinstance(windows, Windows)
    of_plain_file = (dataset.locate(indices)[0] == 1) & (not both_masked)
    wanted = windows.present & ((windows.ids % 3 == 0) | of_plain_file[:, None])
    assert windows.trained.tolist() == wanted.tolist()
    _, targets = LMCollator()(windows)
    assert (targets.numpy() != -100).tolist() == wanted[:, 1:].tolist()
    assert dataset.bytes_per_token == 0.0
    if kind is CombinedDataset:
        assert dataset.num_tokens == int(wanted[:, 1:].sum())
