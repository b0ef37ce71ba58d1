from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modlib.data.packed import pieces
from modlib.data.packed.file import PackedFile
from modlib.data.packing.pack import pack
from modlib.data.rewriting.chunks import chunk
from modlib.data.rewriting.merge import merge
from modlib.data.text.tokenizer import Tokenizer
from modlib.runtime.errors import ConfigError
from tests.data.packed_lists import documents_of_ids, read, write

quickly = settings(max_examples=30)


@given(documents_of_ids.filter(bool), st.data())
@quickly
def test_so_many_chunks_are_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, documents: list[list[int]], data: st.DataObject
) -> None:
    monkeypatch.setattr(pieces, "BATCH_TOKENS", 5)
    num_chunks = data.draw(st.integers(1, len(documents)))
    shutil.rmtree(tmp_path / "out", ignore_errors=True)
    source = write(tmp_path / "a", documents, loss_mask=data.draw(st.booleans()))
    made = chunk(source, tmp_path / "out" / "part", num_chunks=num_chunks)
    assert [path.name for path, _ in made] == [
        f"part-{number:05d}-of-{num_chunks:05d}.packed" for number in range(num_chunks)
    ]
    parts = [read(path) for path, _ in made]
    assert [document for part in parts for document in part] == documents
    assert all(parts)
    assert merge([path for path, _ in made], tmp_path / "b", overwrite=True).sha256 == PackedFile(source).sha256
    longest = max(map(len, documents))
    if num_chunks * longest * 2 < sum(map(len, documents)):  # nothing forces a chunk to be small or large
        assert max(sum(map(len, part)) for part in parts) <= sum(map(len, documents)) / num_chunks + longest


@given(documents_of_ids, st.integers(1, 30))
@quickly
def test_as_few_chunks_as_hold_so_many_tokens(tmp_path: Path, documents: list[list[int]], max_tokens: int) -> None:
    shutil.rmtree(tmp_path / "out", ignore_errors=True)
    made = chunk(write(tmp_path / "a", documents), tmp_path / "out" / "part", max_tokens=max_tokens)
    parts = [read(path) for path, _ in made]
    assert [document for part in parts for document in part] == documents
    sizes = [sum(map(len, part)) for part in parts]
    assert all(size <= max_tokens or len(part) == 1 for part, size in zip(parts, sizes, strict=True))
    for part, following in itertools.pairwise(parts):
        assert sum(map(len, part)) + len(following[0]) > max_tokens  # no chunk that would have taken one more


def test_bytes_of_text_are_kept_where_they_are_known(tmp_path: Path) -> None:
    source = write(tmp_path / "a", [[1, 2], [3]])
    assert chunk(source, tmp_path / "one", num_chunks=1)[0][1].num_bytes_of_text == 3
    assert [header.num_bytes_of_text for _, header in chunk(source, tmp_path / "two", num_chunks=2)] == [0, 0]


def test_what_cannot_be_cut_is_refused(tmp_path: Path) -> None:
    source = write(tmp_path / "a", [[1, 2], [3, 4, 5]])
    with pytest.raises(ConfigError, match=r"num_chunks \(None\) and max_tokens \(None\) must be one alone; give"):
        chunk(source, tmp_path / "b")
    with pytest.raises(ConfigError, match=r"num_chunks \(1\) and max_tokens \(1\) must be one alone"):
        chunk(source, tmp_path / "b", num_chunks=1, max_tokens=1)
    with pytest.raises(ConfigError, match=r"num_chunks \(0\) must be at least 1"):
        chunk(source, tmp_path / "b", num_chunks=0)
    with pytest.raises(ConfigError, match=r"num_chunks \(3\) must be at most the 2 documents of"):
        chunk(source, tmp_path / "b", num_chunks=3)
    chunk(source, tmp_path / "b", num_chunks=2)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ConfigError, match=r"b-00000-of-00002.packed exists; choose another path"):
        chunk(source, tmp_path / "b", num_chunks=2)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    chunk(source, tmp_path / "b", num_chunks=2, overwrite=True)


def test_they_are_the_shards_that_pack_writes(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """Documents that are longer than a shard included."""
    texts = ["fox", "the quick brown fox " * 9, "dog", "a", "b", "over the lazy dog " * 7, "the", "end"]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    pack([tmp_path / "in.jsonl"], tmp_path / "one.packed", tokenizer)
    shards = list(pack([tmp_path / "in.jsonl"], tmp_path / "shard.packed", tokenizer, shard_tokens=12).outputs)
    chunks = [path for path, _ in chunk(tmp_path / "one.packed", tmp_path / "chunk", max_tokens=12)]
    assert [read(path) for path in chunks] == [read(path) for path in shards]
    sizes = [PackedFile(path).num_tokens for path in chunks]
    assert max(sizes) > 12
    assert len(chunks) < len(texts)
