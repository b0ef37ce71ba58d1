"""Names of shards, and windows from all of them."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

from modlib.data.corpora import corpus
from modlib.data.datasets.packed_dataset import PackedDataset
from modlib.data.datasets.packed_shards import PackedShards
from modlib.data.packed.shards import (
    matching,
    shard_path,
    shards_of,
    unsharded,
)
from modlib.data.rewriting.chunks import chunk
from modlib.runtime.errors import ConfigError, DataError
from tests.data.packed_lists import write


@pytest.fixture
def books(tmp_path: Path) -> str:
    """A pattern of three shards of a file with 30 documents of 10 tokens."""
    whole = write(tmp_path / "books.packed", [[number] * 10 for number in range(30)], tokenizer_fingerprint="f" * 64)
    assert len(chunk(whole, tmp_path / "books", num_chunks=3)) == 3
    return str(tmp_path / "books-*.packed")


def test_names() -> None:
    path = Path("a/books.train.packed")
    assert shard_path(path, 3, 8) == Path("a/books.train-00003-of-00008.packed")
    assert unsharded(shard_path(path, 123456, 1234567)) == path
    assert unsharded(path) == path


def test_windows_of_all_shards(books: str, tmp_path: Path) -> None:
    paths = matching(books)
    assert (
        paths == shards_of(tmp_path / "books.packed") == [shard_path(tmp_path / "books.packed", n, 3) for n in range(3)]
    )
    dataset = PackedShards(path=books, seq_len=16)
    parts = [PackedDataset(path=str(path), seq_len=16) for path in paths]
    assert len(dataset) == sum(map(len, parts)) == 18
    rows = np.concatenate([part.__getitems__(range(len(part))) for part in parts])
    assert dataset.__getitems__(range(18)).tolist() == rows.tolist()
    assert pickle.loads(pickle.dumps(dataset)).__getitems__([17, 0]).tolist() == rows[[17, 0]].tolist()
    assert dataset.name == books
    assert dataset.num_documents == 30
    assert dataset.tokenizer_fingerprint == "f" * 64
    assert corpus.is_prepared(books)
    one = PackedShards(path=str(tmp_path / "books.packed"), seq_len=16)
    assert one.__getitems__([3]).tolist() == PackedDataset(path=one.name, seq_len=16).__getitems__([3]).tolist()


def test_shards_that_are_not_all_there_are_refused(books: str, tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"path \('.*books-\*.packed'\) must be one packed file; for windows from all th"
    ):
        PackedDataset(path=books, seq_len=16)
    missing = shard_path(tmp_path / "books.packed", 1, 3)
    missing.rename(tmp_path / "away")
    message = (
        r"shards of .*/books.packed that '.*' matches \(2\) must be all 3; books-00001-of-00003.packed is missing: "
    )
    with pytest.raises(DataError, match=message):
        PackedShards(path=books, seq_len=16)
    (tmp_path / "away").rename(missing)
    chunk(tmp_path / "books.packed", tmp_path / "books", num_chunks=2)
    with pytest.raises(
        DataError, match=r"must be of one packing; there are some of 2 and some of 3: remove those of the"
    ):
        matching(books)
    with pytest.raises(ConfigError, match=r"path \('.*/nothing-\*'\) must match a packed file; it matches none in"):
        PackedShards(path=str(tmp_path / "nothing-*"), seq_len=16)
