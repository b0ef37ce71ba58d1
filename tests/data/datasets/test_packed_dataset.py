from __future__ import annotations

import os
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modlib.data.batches.collate import LMCollator
from modlib.data.datasets.packed_dataset import PackedDataset
from modlib.data.datasets.windows import Windows
from modlib.data.packed.file import PackedFile
from modlib.data.packed.header import HEADER_BYTES
from modlib.runtime.errors import ConfigError, DataError
from tests.data.conftest import MakePacked


@pytest.mark.parametrize(
    ("num_tokens", "seq_len", "reuse", "windows"),
    [
        (5, 4, True, [[0, 1, 2, 3, 4]]),
        (8, 4, True, [[0, 1, 2, 3, 4]]),
        (9, 4, True, [[0, 1, 2, 3, 4], [4, 5, 6, 7, 8]]),
        (10, 4, True, [[0, 1, 2, 3, 4], [4, 5, 6, 7, 8]]),
        (9, 4, False, [[0, 1, 2, 3, 4]]),
        (10, 4, False, [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]),
        (4, 1, True, [[0, 1], [1, 2], [2, 3]]),
        (5, 1, False, [[0, 1], [2, 3]]),
    ],
)
def test_windows(make_packed: MakePacked, num_tokens: int, seq_len: int, reuse: bool, windows: list[list[int]]) -> None:
    dataset = PackedDataset(path=str(make_packed(num_tokens)), seq_len=seq_len, reuse_last_target=reuse)
    assert [dataset[i].tolist() for i in range(len(dataset))] == windows
    assert dataset.__getitems__(np.arange(len(dataset))).tolist() == windows
    assert dataset[-1].tolist() == windows[-1]
    assert dataset.num_tokens == len(windows) * seq_len


@given(st.integers(2, 400), st.integers(1, 50), st.booleans())
@settings(max_examples=40)
def test_window_table(make_packed: MakePacked, num_tokens: int, seq_len: int, reuse: bool) -> None:
    """The counts of Modalities' packed_mem_map_dataset_continuous, with seq_len inputs in both cases."""
    block = seq_len + 1
    if num_tokens < block:
        return
    dataset = PackedDataset(path=str(make_packed(num_tokens)), seq_len=seq_len, reuse_last_target=reuse)
    assert len(dataset) == ((num_tokens - block) // (block - 1) + 1 if reuse else num_tokens // block)
    rows = dataset.__getitems__(list(range(len(dataset))))
    if reuse:  # every token but the first is a target once, until the tail
        assert rows[:, 1:].ravel().tolist() == list(range(1, 1 + len(dataset) * seq_len))
    else:
        assert rows.ravel().tolist() == list(range(len(dataset) * block))


@pytest.mark.parametrize(("vocab_size", "dtype"), [(256, np.uint8), (5000, np.uint16), (70_000, np.uint32)])
def test_windows_keep_the_file_s_integer_type_and_are_copies(
    make_packed: MakePacked, vocab_size: int, dtype: type
) -> None:
    dataset = PackedDataset(path=str(make_packed(300, vocab_size)), seq_len=10)
    rows = dataset.__getitems__([3, 3, 0])
    assert rows.dtype == dtype
    rows[0] = 0
    assert rows[1].tolist() == [i % vocab_size for i in range(30, 41)]


@pytest.mark.parametrize("index", [-1, 10])
def test_indices_out_of_range_are_refused(make_packed: MakePacked, index: int) -> None:
    dataset = PackedDataset(path=str(make_packed(101)), seq_len=10)
    with pytest.raises(IndexError, match="must be 0 to 9"):
        dataset.__getitems__([0, index])
    with pytest.raises(IndexError, match=r"window \(10\) must be below the 10 windows"):
        dataset[10]


def test_too_few_tokens_are_refused_with_the_numbers(make_packed: MakePacked) -> None:
    path = make_packed(64)
    with pytest.raises(DataError) as caught:
        PackedDataset(path=str(path), seq_len=64)
    assert str(caught.value) == (
        f"tokens in {path} (64) must be at least seq_len + 1 (65) for one window; use more text or a shorter SEQ_LEN"
    )
    with pytest.raises(ConfigError, match=r"seq_len \(0\) must be at least 1"):
        PackedDataset(path=str(path), seq_len=0)


def test_fingerprint_tells_contents_and_windows_not_places(make_packed: MakePacked) -> None:
    def fingerprint(num_tokens: int, name: str, seq_len: int = 10, reuse: bool = True) -> str:
        return PackedDataset(
            path=str(make_packed(num_tokens, name=name)), seq_len=seq_len, reuse_last_target=reuse
        ).fingerprint

    first = fingerprint(500, "a")
    assert fingerprint(500, "b") == first
    assert len({first, fingerprint(501, "a"), fingerprint(500, "a", 11), fingerprint(500, "a", 10, False)}) == 4


def test_bytes_per_token(make_packed: MakePacked) -> None:
    assert PackedDataset(path=str(make_packed(500)), seq_len=10).bytes_per_token == 3.0


def test_vocabulary_is_checked_against_the_largest_id(make_packed: MakePacked) -> None:
    path = make_packed(500, vocab_size=400)
    dataset = PackedDataset(path=str(path), seq_len=10)
    dataset.check_vocabulary(400)
    with pytest.raises(DataError) as caught:
        dataset.check_vocabulary(399)
    assert str(caught.value) == (
        f"largest token id in {path} (399) must be below the model's vocab_size (399); set vocab_size to at least 400, "
        "or pack with the model's tokenizer"
    )


def test_tokenizer_is_checked(make_packed: MakePacked) -> None:
    path = make_packed(500, tokenizer_fingerprint="a" * 64)
    dataset = PackedDataset(path=str(path), seq_len=10)
    dataset.check_tokenizer("a" * 64)
    with pytest.raises(
        DataError, match=r"tokenizer of .* \(aaaaaaaaaaaa\) must be the tokenizer in use \(bbbbbbbbbbbb\); pack"
    ):
        dataset.check_tokenizer("b" * 64)
    PackedDataset(path=str(make_packed(500)), seq_len=10).check_tokenizer("b" * 64)


def test_damaged_contents_are_refused_on_opening(make_packed: MakePacked) -> None:
    path = make_packed(500)
    with open(path, "r+b") as file:
        file.seek(HEADER_BYTES + 7)
        file.write(b"\xaa")
    PackedFile(path)
    with pytest.raises(DataError, match="SHA-256 of the contents"):
        PackedDataset(path=str(path), seq_len=10)


def test_changes_during_the_run_are_refused(make_packed: MakePacked) -> None:
    path = make_packed(500)
    dataset = PackedDataset(path=str(path), seq_len=10)
    dataset.check_unchanged()
    os.truncate(path, 4200)
    with pytest.raises(DataError, match=r"size of .* \(4200 bytes\) must stay"):
        dataset.check_unchanged()


def test_pickled_dataset_opens_the_file_again(make_packed: MakePacked) -> None:
    dataset = PackedDataset(path=str(make_packed(101)), seq_len=10, reuse_last_target=False)
    pickled = pickle.dumps(dataset)
    assert len(pickled) < 600
    again = pickle.loads(pickled)
    assert again.fingerprint == dataset.fingerprint
    assert again[8].tolist() == dataset[8].tolist()


@pytest.mark.parametrize("reuse", [True, False])
@pytest.mark.parametrize(("vocab_size", "dtype"), [(256, np.uint8), (5000, np.uint16), (70_000, np.uint32)])
def test_windows_of_a_file_with_a_loss_mask(make_packed: MakePacked, vocab_size: int, dtype: type, reuse: bool) -> None:
    path = str(make_packed(230, vocab_size, loss_mask=True))
    dataset = PackedDataset(path=path, seq_len=10, reuse_last_target=reuse)
    order = [5, 0, 3]
    windows = dataset.__getitems__(order)
    assert isinstance(windows, Windows)
    assert windows.ids.dtype == dtype
    starts = [number * dataset.stride for number in order]
    assert windows.ids.tolist() == [list(range(start, start + 11)) for start in starts]
    assert windows.trained.tolist() == (windows.ids % 3 == 0).tolist()
    assert windows.present.all()
    assert windows.index is not None
    assert windows.index.tolist() == order
    alone = dataset[-1]
    assert isinstance(alone, Windows)
    assert alone.trained.tolist() == (alone.ids % 3 == 0).tolist()
    assert dataset.__getitems__([]).ids.shape == (0, 11)
    inputs, targets = LMCollator()(windows)
    assert inputs.tolist() == windows.ids[:, :-1].tolist()
    assert targets.tolist() == np.where(windows.ids % 3 == 0, windows.ids.astype(int), -100)[:, 1:].tolist()
    _, all_targets = LMCollator()(dataset.__getitems__(range(len(dataset))))
    assert dataset.num_tokens == int((all_targets != -100).sum())
    assert dataset.bytes_per_token == 0.0  # that of the trained tokens is not known
    again = pickle.loads(pickle.dumps(dataset)).__getitems__(order)
    assert again.trained.tolist() == windows.trained.tolist()


def test_the_loss_mask_is_part_of_the_fingerprint(make_packed: MakePacked) -> None:
    plain, masked = make_packed(40, name="plain"), make_packed(40, name="masked", loss_mask=True)
    fingerprints = {PackedDataset(path=str(path), seq_len=4).fingerprint for path in (plain, masked)}
    assert len(fingerprints) == 2
