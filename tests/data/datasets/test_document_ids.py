"""Documents kept apart: numbers per token, targets, and the same through every way to a batch."""

from __future__ import annotations

import functools
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modlib.data.batches.collate import LMCollator
from modlib.data.batches.layout import BatchLayout
from modlib.data.batches.loader import DataLoader
from modlib.data.batches.loader_workers import load_batch
from modlib.data.batches.loss_masking import LossMaskingCollator
from modlib.data.batches.masked_lm import MaskedLMCollator
from modlib.data.batches.sampler import ShuffledSampler
from modlib.data.datasets.combined_dataset import CombinedDataset
from modlib.data.datasets.mixture_dataset import MixtureDataset
from modlib.data.datasets.packed_dataset import PackedDataset
from modlib.data.datasets.packed_documents import PackedDocuments
from modlib.data.datasets.windows import Windows, as_windows
from modlib.data.packed.writer import PackedFileWriter
from modlib.runtime.errors import ConfigError, DataError

Write = Callable[[list[int]], str]
NUMBERS = st.lists(st.integers(0, 9), min_size=1, max_size=40).filter(lambda lengths: sum(lengths) > 12)


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """write(lengths): a file of documents of these lengths, whose tokens count up from 1 through all of them."""

    def write(lengths: list[int], name: str = "documents.packed") -> str:
        with PackedFileWriter(tmp_path / name, vocab_size=60_000, end_of_document_id=0, overwrite=True) as writer:
            writer.write_documents(np.arange(1, sum(lengths) + 1), np.array(lengths, np.int64), 2 * sum(lengths))
        return str(tmp_path / name)

    return write


def owners(lengths: list[int]) -> list[int]:
    """The document of each token; token i is i + 1."""
    return np.repeat(np.arange(len(lengths)), lengths).tolist()


def assert_apart(windows: Windows, lengths: list[int]) -> int:
    """Numbers change exactly where the document of the tokens does; returns the number of targets."""
    owner = owners(lengths)
    documents = windows.document_ids
    assert documents is not None
    assert documents.dtype == np.int32
    for ids, numbers, trained, present in zip(windows.ids.tolist(), documents, windows.trained, windows.present):
        assert numbers[0] == 0
        for place in range(1, len(ids)):
            both = present[place - 1] and present[place]
            same = both and owner[ids[place - 1] - 1] == owner[ids[place] - 1] and ids[place] == ids[place - 1] + 1
            same = same or not (present[place - 1] or present[place])  # padding is one document
            assert numbers[place] - numbers[place - 1] == (not same)
            assert trained[place] == (both and same)
    return int(windows.trained[:, 1:].sum())


@given(NUMBERS, st.integers(1, 12), st.booleans())
@settings(max_examples=80)
def test_continuous_windows(write: Write, lengths: list[int], seq_len: int, reuse: bool) -> None:
    dataset = PackedDataset(path=write(lengths), seq_len=seq_len, reuse_last_target=reuse, intra_document_masking=True)
    windows = dataset.__getitems__(range(len(dataset)))
    assert isinstance(windows, Windows)
    assert assert_apart(windows, lengths) == dataset.num_tokens
    plain = PackedDataset(path=str(dataset.packed.path), seq_len=seq_len, reuse_last_target=reuse)
    assert np.array_equal(windows.ids, plain.__getitems__(range(len(plain))))
    one = dataset[len(dataset) - 1]
    assert isinstance(one, Windows)
    assert one.document_ids is not None
    assert windows.document_ids is not None
    assert one.document_ids.tolist() == windows.document_ids[-1].tolist()


@given(NUMBERS, st.integers(1, 12), st.sampled_from(["in_order", "best_fit"]), st.sampled_from(["truncate", "cut"]))
@settings(max_examples=80)
def test_whole_documents(write: Write, lengths: list[int], seq_len: int, packing: Any, long_documents: Any) -> None:
    dataset = PackedDocuments(
        path=write(lengths),
        seq_len=seq_len,
        packing=packing,
        long_documents=long_documents,
        intra_document_masking=True,
    )
    windows = dataset.__getitems__(range(len(dataset)))
    assert assert_apart(windows, lengths) == dataset.num_tokens
    _, targets = LMCollator()(windows)
    assert int((targets != -100).sum()) == dataset.num_tokens


def test_the_setting_is_part_of_the_fingerprint_and_survives_pickling(write: Write) -> None:
    path = write([3, 4, 5, 2])
    for kind in (PackedDataset, PackedDocuments):
        apart = kind(path=path, seq_len=4, intra_document_masking=True)
        together = kind(path=path, seq_len=4)
        assert apart.fingerprint == f"{together.fingerprint}/intra_document_masking"
        again = pickle.loads(pickle.dumps(apart)).__getitems__([0, 1])
        assert np.array_equal(again.document_ids, apart.__getitems__([0, 1]).document_ids)


def test_named_inputs_with_and_without_an_attention_mask(write: Write) -> None:
    windows = PackedDocuments(path=write([3, 1, 4]), seq_len=5, intra_document_masking=True).__getitems__([0, 1])
    inputs, targets = LMCollator(attention_mask=True)(windows)
    assert isinstance(inputs, dict)
    assert list(inputs) == ["input_ids", "attention_mask", "document_ids"]
    assert inputs["input_ids"].tolist() == [[1, 2, 3, 4, 0], [5, 6, 7, 8, 0]]
    assert inputs["document_ids"].tolist() == [[0, 0, 0, 1, 2], [0, 0, 0, 0, 1]]
    assert inputs["attention_mask"].tolist() == [[1, 1, 1, 1, 0]] * 2
    assert targets.tolist() == [[2, 3, -100, -100, -100], [6, 7, 8, -100, -100]]
    named, _ = LMCollator()(windows)
    assert list(named) == ["input_ids", "document_ids"]


class Markers:
    def token_id(self, token: str) -> int:
        return int(token)


def test_a_document_may_begin_with_a_marker(write: Write) -> None:
    collate = LossMaskingCollator(collate=LMCollator, tokenizer=Markers, begin_token="4", end_token="6")
    windows = PackedDocuments(path=write([3, 4]), seq_len=7, intra_document_masking=True).__getitems__([0])
    inputs, targets = collate(windows)
    assert inputs["document_ids"].tolist() == [[0, 0, 0, 1, 1, 1, 1]]  # type: ignore[call-overload]
    assert targets.tolist() == [[-100, -100, -100, 5, 6, -100, -100]]


@pytest.mark.parametrize("workers", [0, 1])
def test_loaded_batches_and_their_pieces(write: Write, workers: int) -> None:
    dataset = PackedDataset(path=write([3, 4, 5, 2, 9, 1, 1, 8]), seq_len=4, intra_document_masking=True)
    sampler = ShuffledSampler(seed=0, num_samples=len(dataset))
    loader = DataLoader(
        dataset=dataset,
        sampler=sampler,
        collate=LMCollator(),
        layout=BatchLayout(2, 2),
        num_workers=workers,
    )
    with loader:
        batches = next(loader.iterate())
    whole = dataset.__getitems__(sampler.indices(0, 4))
    assert isinstance(whole, Windows)
    assert whole.document_ids is not None
    found = [row for inputs, _ in batches for row in inputs["document_ids"].tolist()]  # type: ignore[call-overload]
    assert found == whole.document_ids[:, :-1].tolist()


@pytest.mark.parametrize("kind", ["combined", "mixture"])
def test_several_sources(write: Write, kind: str) -> None:
    first = functools.partial(PackedDataset, path=write([3, 4, 5, 2, 9]), seq_len=4, intra_document_masking=True)
    second = functools.partial(PackedDocuments, path=write([2, 2, 1], "b"), seq_len=4, intra_document_masking=True)  # type: ignore[call-arg]
    if kind == "combined":
        several: Any = CombinedDataset(datasets=[first, second])
    else:
        several = MixtureDataset(datasets=[first, second], weights=[0.5, 0.5])
    assert several.intra_document_masking
    windows = several.__getitems__(np.arange(len(several)))
    which, inside = several.locate(np.arange(len(several)))
    for row, (source, index) in enumerate(zip(which.tolist(), inside.tolist())):
        assert windows.document_ids[row].tolist() == several.sources[source][index].document_ids.tolist()
        assert windows.trained[row].tolist() == several.sources[source][index].trained.tolist()
    plain = functools.partial(PackedDataset, path=write([9, 9], "c"), seq_len=4)  # type: ignore[call-arg]
    with pytest.raises(ConfigError) as caught:
        CombinedDataset(datasets=[first, plain])
    assert str(caught.value) == (
        "intra_document_masking of the datasets of combined ([True, False]) must be equal; set it in all or in none"
    )


def test_what_is_read_next_is_told_to_the_dataset_and_to_its_sources(write: Write) -> None:
    told: dict[str, list[int]] = {}

    class Told(PackedDocuments):
        def read_ahead(self, indices: Any) -> None:
            told.setdefault(self.name, []).extend(indices.tolist())
            super().read_ahead(indices)

    paths = [write([3, 4, 5, 2], "a"), write([2, 5, 1], "b")]
    combined = CombinedDataset(datasets=[functools.partial(Told, path=path, seq_len=4) for path in paths])
    load_batch(combined, LMCollator(), np.array([4, 0, 2, 3]))
    assert told == {paths[0]: [0, 2, 3], paths[1]: [0]}
    load_batch(combined.sources[1], LMCollator(), np.array([1]))
    assert told[paths[1]] == [0, 1]


def test_padding_of_several_sources(write: Write) -> None:
    first = functools.partial(PackedDocuments, path=write([5, 3, 3, 2], "a"), seq_len=4)  # type: ignore[call-arg]
    second = functools.partial(PackedDataset, path=write([9], "b"), seq_len=4)  # type: ignore[call-arg]
    assert first().padding == pytest.approx(2 / 15)
    assert (len(first()), len(second())) == (3, 2)
    assert CombinedDataset(datasets=[first, second]).padding == pytest.approx(2 / 25)
    mixture = MixtureDataset(datasets=[first, second], weights=[0.75, 0.25], num_samples=8)
    assert mixture.padding == pytest.approx(0.75 * 2 / 15)
    assert CombinedDataset(datasets=[second]).padding is None


def test_mixed_up_batches_are_refused(write: Write) -> None:
    apart = PackedDataset(path=write([3, 4, 5, 2, 9]), seq_len=4, intra_document_masking=True)
    with pytest.raises(DataError) as caught:
        as_windows([apart[0], np.arange(5)])
    assert str(caught.value) == (
        "document_ids (1 of 2 windows) must be present for every window of a batch or for none; set "
        "intra_document_masking alike in all datasets"
    )
    with pytest.raises(ConfigError, match=r"intra_document_masking \(True\) must be False with MaskedLMCollator"):
        MaskedLMCollator(mask_id=0, vocab_size=10)(as_windows([apart[0]]))


def test_damaged_offsets_are_refused(write: Write) -> None:
    dataset = PackedDataset(path=write([3, 4, 5, 2, 9]), seq_len=8, intra_document_masking=True)
    dataset.packed.document_offsets = np.array([0, 3, 7, 2, 14, 23])
    with pytest.raises(DataError, match=r"document offsets of .* must be in order; the file is damaged: copy it again"):
        dataset.__getitems__([0, 1])
