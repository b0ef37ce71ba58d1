from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modlib.data.packed.file import PackedFile
from modlib.data.permutation import KeyedPermutation
from modlib.data.rewriting import shuffle as packed_shuffle
from modlib.data.rewriting.copying import provenance_beside
from modlib.data.rewriting.shuffle import shuffle
from modlib.runtime.errors import ConfigError, DataError
from tests.data.packed_lists import documents_of_ids, read, write

quickly = settings(max_examples=30)


def in_parts(monkeypatch: pytest.MonkeyPatch, bytes_per_mib: int) -> None:
    """Pretend that a MiB is so small that lists of a few documents do not fit."""

    class Small(int):
        def __lshift__(self, bits: int) -> int:
            return int(self) * bytes_per_mib

    real = packed_shuffle.shuffle
    monkeypatch.setattr(packed_shuffle, "shuffle", lambda *a, **k: real(*a, **{**k, "memory_mib": Small(1)}))


@given(documents_of_ids, st.integers(0, 3), st.sampled_from([40, 200, 1000]), st.booleans())
@quickly
def test_every_document_in_the_order_of_the_permutation_whatever_the_memory(
    tmp_path: Path, documents: list[list[int]], seed: int, bytes_per_mib: int, masked: bool
) -> None:
    source = write(tmp_path / "a", documents, loss_mask=masked)
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(packed_shuffle, "_GATHERED_AT_ONCE", 4)
        in_parts(monkeypatch, bytes_per_mib)
        small = packed_shuffle.shuffle(source, tmp_path / "small", seed=seed, overwrite=True)
    header = shuffle(source, tmp_path / "out", seed=seed, overwrite=True)
    assert header.sha256 == small.sha256
    assert ("loss_mask" in header.sections) == masked
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == []
    expected: list[list[int]] = [[]] * len(documents)
    if documents:
        order = KeyedPermutation(len(documents), f"modlib shuffle of a packed file {seed}")
        for place, document in zip(order(np.arange(len(documents))).tolist(), documents, strict=True):
            expected[place] = document
    assert read(tmp_path / "small") == read(tmp_path / "out") == expected
    assert header.num_bytes_of_text == PackedFile(source).num_bytes_of_text


@given(documents_of_ids, st.integers(1, 9), st.sampled_from([60, 300]), st.booleans())
@quickly
def test_blocks(
    tmp_path: Path, documents: list[list[int]], block_tokens: int, bytes_per_mib: int, masked: bool
) -> None:
    source = write(tmp_path / "a", documents, end_of_document_id=0, loss_mask=masked)
    tokens = [token for document in documents for token in document]
    blocks = [tokens[start : start + block_tokens] for start in range(0, len(tokens), block_tokens)]
    with pytest.MonkeyPatch.context() as monkeypatch:
        in_parts(monkeypatch, bytes_per_mib)
        small = packed_shuffle.shuffle(
            source, tmp_path / "small", seed=1, unit="block", block_tokens=block_tokens, overwrite=True
        )
    header = shuffle(source, tmp_path / "out", seed=1, unit="block", block_tokens=block_tokens, overwrite=True)
    assert header.sha256 == small.sha256
    assert Counter(map(tuple, read(tmp_path / "out"))) == Counter(map(tuple, blocks))
    assert header.end_of_document_id is None


def test_parts_on_disk_with_the_real_limit(tmp_path: Path) -> None:
    documents = np.random.default_rng(0).integers(0, 300, 1_200_000)
    lengths = np.full(1200, 1000)
    from modlib.data.packed.writer import PackedFileWriter

    with PackedFileWriter(tmp_path / "a", vocab_size=300) as writer:
        writer.write_documents(documents, lengths)
    seen: list[tuple[int, int]] = []
    small = shuffle(tmp_path / "a", tmp_path / "b", seed=5, memory_mib=1, progress=lambda *done: seen.append(done))
    large = shuffle(tmp_path / "a", tmp_path / "c", seed=5)
    assert seen[-1] == (2_400_000, 2_400_000)  # dealt out, then written: it did not fit
    assert small.sha256 == large.sha256 != PackedFile(tmp_path / "a").sha256
    other = shuffle(tmp_path / "a", tmp_path / "d", seed=6)
    assert other.sha256 != large.sha256
    assert json.loads(provenance_beside(tmp_path / "c").read_text())["options"]["seed"] == 5


def test_an_error_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write(tmp_path / "a", [[1, 2]] * 50)
    in_parts(monkeypatch, 100)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(packed_shuffle, "_take_in", full)
    with pytest.raises(DataError, match=r"parts of .*out cannot be kept in .*: No space left on device; free space"):
        packed_shuffle.shuffle(source, tmp_path / "out", seed=1)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_wrong_settings_are_refused_together(tmp_path: Path) -> None:
    source = write(tmp_path / "a", [[1]])
    with pytest.raises(ConfigError) as caught:
        shuffle(source, tmp_path / "b", seed=-1, memory_mib=0, unit="line")  # type: ignore[arg-type]
    assert caught.value.problems == [
        "seed (-1) must be at least 0; choose another seed",
        "memory_mib (0) must be at least 1; set it to 1 or more",
        "unit (line) must be document or block; choose one of them",
    ]
    with pytest.raises(ConfigError, match=r"block_tokens \(None\) must be given with unit block.*add --block_tokens N"):
        shuffle(source, tmp_path / "b", seed=1, unit="block")
    with pytest.raises(ConfigError, match=r"block_tokens \(5\) must be given with unit block.*add --unit block"):
        shuffle(source, tmp_path / "b", seed=1, block_tokens=5)
    with pytest.raises(ConfigError, match=r"block_tokens \(0\) must be at least 1"):
        shuffle(source, tmp_path / "b", seed=1, unit="block", block_tokens=0)
