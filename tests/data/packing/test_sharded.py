"""Outputs in shards: the same documents in the same order, however they are made."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modlib.data.packed.file import PackedFile
from modlib.data.packing.pack import pack
from modlib.data.rewriting.chunks import chunk
from modlib.data.rewriting.merge import merge
from modlib.data.text import sources
from modlib.data.text.tokenizer import Tokenizer
from modlib.data.tokenizers.from_files import tokenizer_path
from modlib.runtime.errors import ConfigError
from tests.data.packing.test_pack import (
    SOME_TEXT,
    sentences,
    texts_of,
    write_jsonl,
)


@given(st.lists(SOME_TEXT, min_size=1, max_size=20), st.integers(1, 60), st.integers(1, 300))
@settings(max_examples=40)
def test_shards_are_filled_in_order(
    tokenizer: Tokenizer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    texts: list[str],
    shard_tokens: int,
    block_bytes: int,
) -> None:
    monkeypatch.setattr(sources, "BLOCK_BYTES", block_bytes)
    source = write_jsonl(tmp_path / "a.jsonl", texts)
    summary = pack([source], tmp_path / "a.packed", tokenizer, shard_tokens=shard_tokens, overwrite=True)
    paths = list(summary.outputs)
    assert [path.name for path in paths] == [f"a-{n:05d}-of-{len(paths):05d}.packed" for n in range(len(paths))]
    assert sorted(tmp_path.glob("*.packed")) == paths  # those of the examples before are gone
    assert [text for path in paths for text in texts_of(path, tokenizer)] == texts
    sizes = [[len(one.document(n)) for n in range(one.num_documents)] for one in map(PackedFile, paths)]
    for own, following in zip(sizes, [*sizes[1:], None], strict=True):
        assert sum(own) <= shard_tokens or len(own) == 1
        assert following is None or sum(own) + following[0] > shard_tokens
    assert [header.num_bytes_of_text for header in summary.outputs.values()] == [
        sum(len(text.encode()) for text in texts_of(path, tokenizer)) for path in paths
    ]
    assert [header.info["shard"] for header in summary.outputs.values()] == [[n, len(paths)] for n in range(len(paths))]


@pytest.mark.slow
def test_shards_are_the_chunks_of_the_whole_file(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "BLOCK_BYTES", 2000)
    source = write_jsonl(tmp_path / "a.jsonl", sentences(150))
    header = next(iter(pack([source], tmp_path / "whole.packed", tokenizer).outputs.values()))
    shards = [
        pack([source], tmp_path / str(workers) / "a.packed", tokenizer, shard_tokens=700, workers=workers).outputs
        for workers in (1, 2, 3)
    ]
    assert len(shards[0]) > 5
    contents = [[path.read_bytes() for path in made] for made in shards]
    assert contents[0] == contents[1] == contents[2]
    chunks = chunk(tmp_path / "whole.packed", tmp_path / "part", max_tokens=700)
    assert [one.sha256 for one in shards[0].values()] == [one.sha256 for _, one in chunks]
    assert merge(list(shards[0]), tmp_path / "merged.packed").sha256 == header.sha256
    assert tokenizer_path(list(shards[0])[3]) == tmp_path / "1" / "a.tokenizer.json"
    assert tokenizer_path(chunks[3][0]) == tmp_path / "part.tokenizer.json"


def test_every_output_of_a_split_has_shards(tokenizer: Tokenizer, tmp_path: Path) -> None:
    texts = list(dict.fromkeys(sentences(150)))
    source = write_jsonl(tmp_path / "a.jsonl", texts)
    split = {"train": 0.8, "validation": 0.2}
    made: dict[str, Any] = {"split": split, "shard_tokens": 700}
    outputs = pack([source], tmp_path / "a.packed", tokenizer, **made).outputs
    parts = {name: [path for path in outputs if path.name.startswith(f"a.{name}-")] for name in split}
    assert all(len(paths) > 1 for paths in parts.values())
    assert sorted(text for path in outputs for text in texts_of(path, tokenizer)) == sorted(texts)
    for name, paths in parts.items():
        found = [text for path in paths for text in texts_of(path, tokenizer)]
        assert found == [text for text in texts if text in set(found)]
        assert (tmp_path / f"a.{name}.tokenizer.json").is_file()
    again = pack([source], tmp_path / "a.packed", tokenizer, **made, resume=True)
    assert again.engine == "none: it was complete"
    assert again.outputs == outputs


def test_shards_that_are_there_are_kept_or_replaced_all(tokenizer: Tokenizer, tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "a.jsonl", sentences(20))
    before = list(pack([source], tmp_path / "a.packed", tokenizer, shard_tokens=100).outputs)
    with pytest.raises(ConfigError, match=r"a-00000-of-000\d\d.packed exists; choose another path, remove it, or pass"):
        pack([source], tmp_path / "a.packed", tokenizer, shard_tokens=1000)
    after = list(pack([source], tmp_path / "a.packed", tokenizer, shard_tokens=1000, overwrite=True).outputs)
    assert len(after) < len(before)
    assert sorted(tmp_path.glob("*.packed")) == after
    pack([source], tmp_path / "a.packed", tokenizer)  # a whole one is another output
    assert sorted(os.listdir(tmp_path)) == sorted(
        ["a.jsonl", "a.pack.json", "a.packed", "a.tokenizer.json", *(path.name for path in after)]
    )
    with pytest.raises(ConfigError, match=r"shard_tokens \(0\) must be at least 1; leave it out for one file"):
        pack([source], tmp_path / "a.packed", tokenizer, shard_tokens=0)
