from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modlib.data.batches.collate import LMCollator
from modlib.data.datasets.packed_documents import PackedDocuments
from modlib.data.packed.writer import PackedFileWriter
from modlib.runtime.errors import ConfigError, DataError

Make = Callable[..., PackedDocuments]
PACKINGS: list[Literal["in_order", "best_fit"]] = ["in_order", "best_fit"]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """make(lengths, seq_len=4, ...): documents of these lengths, whose tokens count up from 1 through all of them."""

    def make(lengths: list[int], seq_len: int = 4, **settings: Any) -> PackedDocuments:
        path = tmp_path / "documents.packed"
        with PackedFileWriter(path, vocab_size=60_000, end_of_document_id=0, overwrite=True) as writer:
            writer.write_documents(np.arange(1, sum(lengths) + 1), np.array(lengths, np.int64), 2 * sum(lengths))
        return PackedDocuments(path=str(path), seq_len=seq_len, **settings)

    return make


def rows(dataset: PackedDocuments) -> list[list[int]]:
    """The tokens of every window without its padding, which must be at its end and be no target."""
    found = []
    for index in range(len(dataset)):
        window = dataset[index]
        length = int(window.present.sum())
        assert window.ids.shape == (dataset.seq_len + 1,)
        assert window.present.tolist() == window.trained.tolist() == [i < length for i in range(dataset.seq_len + 1)]
        assert (window.ids[length:] == 0).all()
        found.append(window.ids[:length].tolist())
    return found


def counted(*lengths: int, start: int = 1) -> list[list[int]]:
    ends = np.cumsum(lengths) + start
    return [list(range(end - length, end)) for end, length in zip(ends.tolist(), lengths, strict=True)]


def test_window_table_in_order(make: Make) -> None:
    assert rows(make([2, 2, 3, 1, 1, 5, 1])) == counted(4, 5, 5, 1)
    assert rows(make([5, 5])) == counted(5, 5)
    assert rows(make([3, 3, 2])) == counted(3, 5)
    assert rows(make([0, 3, 0, 2, 0, 4, 0])) == counted(5, 4)


def test_best_fit_leaves_less_room(make: Make) -> None:
    lengths = [3, 3, 2, 4, 1, 2]
    assert rows(make(lengths)) == counted(3, 5, 5, 2)
    best = make(lengths, packing="best_fit")
    assert rows(best) == [[1, 2, 3, 14, 15], [4, 5, 6, 7, 8], [9, 10, 11, 12, 13]]
    assert best.padding == 0.0
    assert make(lengths).padding == 5 / 20


def test_long_documents(make: Make) -> None:
    for packing in PACKINGS:
        dataset = make([2, 12, 2], long_documents="truncate", packing=packing)
        assert dataset.num_truncated_tokens == 7
    assert rows(make([2, 12, 2], long_documents="truncate")) == [[1, 2], [3, 4, 5, 6, 7], [15, 16]]
    # cut: starts 4 apart, the last piece shares its window with the next document
    cut = [[1, 2], [3, 4, 5, 6, 7], [7, 8, 9, 10, 11], [11, 12, 13, 14], [15, 16]]
    assert rows(make([2, 12, 2], long_documents="cut")) == cut
    assert rows(make([11, 2], long_documents="cut")) == [[1, 2, 3, 4, 5], [5, 6, 7, 8, 9], [9, 10, 11, 12, 13]]
    for packing in PACKINGS:
        with pytest.raises(DataError) as caught:
            make([2, 5, 6], packing=packing)
        assert str(caught.value).endswith(
            "documents.packed (6) must be at most seq_len + 1 (5); set PackedDocuments.long_documents = 'cut' or "
            "'truncate', or a longer SEQ_LEN"
        )
        assert str(caught.value).startswith("tokens of document 2 of ")


@given(
    st.lists(st.integers(0, 9), min_size=1, max_size=40).filter(any),
    st.integers(1, 12),
    st.sampled_from(PACKINGS),
    st.sampled_from(["truncate", "cut"]),
)
@settings(max_examples=120)
def test_documents_are_whole_and_nothing_is_lost(
    make: Make, lengths: list[int], seq_len: int, packing: str, long_documents: str
) -> None:
    dataset = make(lengths, seq_len, packing=packing, long_documents=long_documents)
    found = rows(dataset)
    documents = [document for document in counted(*lengths) if document]
    for document in documents:
        if len(document) <= seq_len + 1:  # whole, in one window, once
            places = [row for row in found if document[0] in row]
            assert len(places) == 1
            start = places[0].index(document[0])
            assert places[0][start : start + len(document)] == document
    everywhere = [token for row in found for token in row]
    if long_documents == "truncate":
        kept = [document[: seq_len + 1] for document in documents]
        assert sorted(everywhere) == sorted(token for document in kept for token in document)
        assert dataset.num_truncated_tokens == sum(map(len, documents)) - len(everywhere)
    else:  # only the joints of a cut document are there twice
        assert set(everywhere) == set(range(1, sum(lengths) + 1))
        joints = sum(max(-(-(len(document) - 1) // seq_len), 1) - 1 for document in documents)
        assert len(everywhere) == sum(lengths) + joints
    _, targets = LMCollator()(dataset.__getitems__(range(len(dataset))))
    assert int((targets != -100).sum()) == dataset.num_tokens
    if packing == "in_order":
        assert everywhere == sorted(everywhere)


@given(st.lists(st.integers(1, 20), min_size=1, max_size=60))
@settings(max_examples=60)
def test_best_fit_is_within_its_bound(make: Make, lengths: list[int]) -> None:
    """At most 11/9 of the fewest windows + 1 (Johnson 1974), of which in_order never needs less."""
    best = len(make(lengths, 19, packing="best_fit"))
    assert -(-sum(lengths) // 20) <= best <= 11 / 9 * len(make(lengths, 19)) + 1


def test_what_is_said_about_it(make: Make) -> None:
    dataset = make([2, 2, 3])
    assert (len(dataset), dataset.num_tokens, dataset.num_documents) == (2, 3 + 2, 3)
    assert dataset.bytes_per_token == 2.0
    others = [make([2, 2, 4]), make([2, 2, 3], 5), make([2, 2, 3], packing="best_fit")]
    others.append(make([2, 2, 3], long_documents="cut"))
    assert len({dataset.fingerprint, *(other.fingerprint for other in others)}) == 5
    dataset.check_vocabulary(8)
    with pytest.raises(DataError, match=r"largest token id in .* \(7\) must be below the model's vocab_size \(7\)"):
        dataset.check_vocabulary(7)
    dataset.check_tokenizer("any")
    dataset.check_unchanged()


def test_the_id_that_pads_is_one_of_the_model_s(tmp_path: Path) -> None:
    path = tmp_path / "a.packed"
    with PackedFileWriter(path, vocab_size=10, end_of_document_id=9) as writer:
        writer.write([1, 2, 3])
    dataset = PackedDocuments(path=str(path), seq_len=4)
    dataset.check_vocabulary(10)
    with pytest.raises(DataError) as caught:
        dataset.check_vocabulary(9)
    assert str(caught.value) == (
        f"end-of-document id of {path} (9), which pads windows, must be below the model's vocab_size (9); set "
        "vocab_size to at least 10"
    )


def test_pickled_dataset_opens_the_file_again(make: Make) -> None:
    dataset = make([2, 9, 3, 1], long_documents="cut", packing="best_fit")
    pickled = pickle.dumps(dataset)
    assert len(pickled) < 600
    assert rows(pickle.loads(pickled)) == rows(dataset)


def test_bad_settings_and_indices_are_refused(make: Make) -> None:
    with pytest.raises(ConfigError, match=r"seq_len \(0\) must be at least 1"):
        make([2], 0)
    with pytest.raises(DataError, match=r"documents in .* \(2\) must have tokens"):
        make([0, 0])
    with pytest.raises(IndexError, match="must be 0 to 0"):
        make([2]).__getitems__([-1])
    with pytest.raises(IndexError, match=r"window \(1\) must be below the 1 windows"):
        make([2])[1]


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("vocab_size", [256, 5000, 70_000])
def test_a_loss_mask_is_handed_on(tmp_path: Path, packing: Any, vocab_size: int) -> None:
    path, lengths = tmp_path / "masked.packed", [2, 2, 0, 3, 1, 1, 11, 1, 5]
    with PackedFileWriter(path, vocab_size=vocab_size, loss_mask=True) as writer:
        tokens = np.arange(1, sum(lengths) + 1)
        writer.write_documents(tokens, lengths, trained=tokens % 3 == 0)
    dataset = PackedDocuments(path=str(path), seq_len=4, long_documents="cut", packing=packing)
    windows = dataset.__getitems__(range(len(dataset)))
    apart = PackedDocuments(
        path=str(path), seq_len=4, long_documents="cut", packing=packing, intra_document_masking=True
    )
    both = apart.__getitems__(range(len(apart)))
    assert both.document_ids is not None
    begins = np.diff(both.document_ids, axis=1, prepend=-1) != 0
    assert both.trained[:, 1:].tolist() == (windows.trained & ~begins)[:, 1:].tolist()
    assert apart.num_tokens == int(both.trained[:, 1:].sum())
    assert not windows.present.all()
    assert windows.trained.tolist() == (windows.present & (windows.ids % 3 == 0)).tolist()
    _, targets = LMCollator()(windows)
    wanted = np.where(windows.trained, windows.ids.astype(int), -100)[:, 1:]
    assert targets.tolist() == wanted.tolist()
    assert dataset.num_tokens == int((wanted != -100).sum())
    assert dataset.bytes_per_token == 0.0


def one_by_one(lengths: list[int], room: int) -> list[list[int]]:
    """Best fit as it is defined: longest first, into the window with the least room that takes it, or a new one."""
    windows: list[list[int]] = []
    for piece in sorted(range(len(lengths)), key=lambda piece: -lengths[piece]):
        left = [room - sum(lengths[other] for other in window) for window in windows]
        fitting = [number for number, rest in enumerate(left) if rest >= lengths[piece]]
        if fitting:
            windows[min(fitting, key=lambda number: left[number])].append(piece)
        else:
            windows.append([piece])
    return windows


@given(st.lists(st.integers(1, 20), min_size=1, max_size=60))
@settings(max_examples=60)
def test_best_fit_leaves_the_same_rooms_as_one_by_one(make: Make, lengths: list[int]) -> None:
    found = sorted(len(row) for row in rows(make(lengths, 19, packing="best_fit")))
    assert found == sorted(sum(lengths[piece] for piece in window) for window in one_by_one(lengths, 20))
