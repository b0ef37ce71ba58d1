from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest

from modlib.data.packed.file import PackedFile
from modlib.data.packed.writer import PackedFileWriter
from modlib.runtime import faults
from modlib.runtime.errors import ConfigError, DataError


def test_same_contents_give_the_same_bytes_however_they_are_cut(tmp_path: Path) -> None:
    tokens = np.arange(1000) % 700
    with PackedFileWriter(tmp_path / "a", vocab_size=700) as writer:
        writer.write_documents(tokens, [300, 0, 700], 5)
    with PackedFileWriter(tmp_path / "b", vocab_size=700) as writer:
        for part, num_bytes in ((tokens[:300], 2), (tokens[:0], 0), (tokens[300:], 3)):
            writer.write(part.astype(np.uint32), num_bytes)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert writer.header == PackedFile(tmp_path / "a").header


@pytest.mark.parametrize("read_only", [False, True])
def test_an_array_may_be_changed_once_it_is_written(tmp_path: Path, read_only: bool) -> None:
    buffer = np.zeros(1 << 20, np.uint16)
    given = buffer.view()
    given.flags.writeable = not read_only
    with PackedFileWriter(tmp_path / "a", vocab_size=50_000) as writer:
        for number in range(8):
            buffer[:] = number
            writer.write(given)
    PackedFile(tmp_path / "a").verify()


def test_large_arrays_of_a_mapped_file_are_hashed_beside_the_writing(tmp_path: Path) -> None:
    with PackedFileWriter(tmp_path / "a", vocab_size=50_000) as writer:
        writer.write(np.arange(1 << 20) % 50_000)
    packed = PackedFile(tmp_path / "a")
    with PackedFileWriter(tmp_path / "b", vocab_size=50_000) as writer:
        for start in range(0, 1 << 20, 1 << 18):
            writer.write(packed.tokens[start : start + (1 << 18)])
            assert writer._hash._waiting is not None
    PackedFile(tmp_path / "b").verify()


def test_an_error_leaves_nothing_behind(tmp_path: Path) -> None:
    def write_and_fail() -> None:
        with PackedFileWriter(tmp_path / "a", vocab_size=10) as writer:
            writer.write([1, 2, 3])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_and_fail()
    assert list(tmp_path.iterdir()) == []


def test_existing_file_is_kept_until_the_rename(tmp_path: Path) -> None:
    path = tmp_path / "a"
    with PackedFileWriter(path, vocab_size=10) as writer:
        writer.write([1, 2, 3])
    with pytest.raises(ConfigError, match=r"a exists; choose another path, remove it, or pass --overwrite"):
        PackedFileWriter(path, vocab_size=10)
    with PackedFileWriter(path, vocab_size=10, overwrite=True) as writer:
        writer.write([4])
        assert PackedFile(path).tokens.tolist() == [1, 2, 3]
    assert PackedFile(path).tokens.tolist() == [4]


def test_whatever_operation_a_crash_precedes_no_file_looks_complete(tmp_path: Path) -> None:
    path = tmp_path / "a"
    operations: list[str] = []
    record = faults.installed("fs.operation", lambda name, detail: operations.append(detail))
    with record, PackedFileWriter(path, vocab_size=10) as writer:
        writer.write([1, 2, 3])
    path.unlink()
    rename = next(number for number, operation in enumerate(operations) if operation.startswith("rename"))
    assert sum(operation.startswith("fsync") for operation in operations[:rename]) == 2  # tokens, then the header
    assert operations[rename + 1] == f"fsync {tmp_path}"
    for stop in range(1, rename + 1):
        seen = 0

        def crash(name: str, detail: str, stop: int = stop) -> None:
            nonlocal seen
            seen += 1
            if seen > stop:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        refused = pytest.raises(DataError, match="a cannot be written: No space left on device; free space")
        with faults.installed("fs.operation", crash), refused, PackedFileWriter(path, vocab_size=10) as writer:
            writer.write([1, 2, 3])
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("ids", "bad"), [([1, 2, 10], 10), ([1, -1, 2], -1)])
def test_ids_out_of_vocabulary_are_refused_with_their_document(tmp_path: Path, ids: list[int], bad: int) -> None:
    writer = PackedFileWriter(tmp_path / "a", vocab_size=10)
    writer.write([0])
    with pytest.raises(DataError) as caught:
        writer.write_documents(ids, [1, 0, 2])
    assert str(caught.value) == (
        f"token id ({bad}) of document 3 must be at least 0 and below vocab_size (10); "
        "check that the ids come from this tokenizer"
    )
    writer.abort()


def test_wrong_arguments_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"token_width \(1\) must be 1, 2 or 4 and at least 2 for 300 ids"):
        PackedFileWriter(tmp_path / "a", vocab_size=300, token_width=1)
    writer = PackedFileWriter(tmp_path / "a", vocab_size=300, token_width=4)
    with pytest.raises(DataError, match=r"lengths \(sum 2\) must add up to the number of tokens \(3\)"):
        writer.write_documents([1, 2, 3], [2])
    with pytest.raises(DataError, match=r"dtype of the tokens \(float64\) must be an integer type"):
        writer.write([0.5])
    writer.abort()
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="cannot be written"):
        PackedFileWriter(tmp_path / "file" / "a", vocab_size=10)


@pytest.mark.parametrize("masked", [False, True])
def test_what_was_cut_off_is_continued(tmp_path: Path, masked: bool) -> None:
    def write(writer: PackedFileWriter, *numbers: int) -> None:
        for number in numbers:
            writer.write([number] * number, 2, [bit % 3 == 0 for bit in range(number)] if masked else None)

    whole, path, partial = tmp_path / "whole.packed", tmp_path / "a.packed", tmp_path / "unfinished"
    with PackedFileWriter(whole, vocab_size=300, loss_mask=masked) as writer:
        write(writer, *range(6))
    cut_off = PackedFileWriter(path, vocab_size=300, loss_mask=masked, partial=partial)
    write(cut_off, *range(4))
    state = cut_off.checkpoint()
    cut_off.write([299] * 50, 2)  # after the checkpoint: thrown away
    cut_off.abort()
    assert not path.exists()
    with PackedFileWriter(path, vocab_size=300, loss_mask=masked, partial=partial, state=state) as writer:
        write(writer, 4, 5)
    assert path.read_bytes() == whole.read_bytes()


def test_a_loss_mask_is_part_of_the_file_and_its_hash(tmp_path: Path) -> None:
    trained = np.arange(21) % 4 == 1
    for name, mask in (("a", trained), ("b", ~trained), ("c", None)):
        with PackedFileWriter(tmp_path / name, vocab_size=30, loss_mask=True) as writer:
            writer.write(np.arange(10), trained=None if mask is None else mask[:10])
            writer.write_documents(np.arange(11), [5, 6], trained=None if mask is None else mask[10:])
        packed = PackedFile(tmp_path / name)
        packed.verify()
        assert packed.has_loss_mask
        assert packed.header.sections["loss_mask"][1] == 3
        assert packed.trained(0, 21).tolist() == (np.ones(21) if mask is None else mask).astype(bool).tolist()
        assert packed.trained(9, 14).tolist() == packed.trained(0, 21)[9:14].tolist()
    hashes = {PackedFile(tmp_path / name).sha256 for name in "abc"}
    assert len(hashes) == 3


def test_a_mask_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    for masked, trained in ((True, [True]), (False, [True, True])):
        writer = PackedFileWriter(tmp_path / "a", vocab_size=30, loss_mask=masked)
        with pytest.raises(DataError) as caught:
            writer.write([1, 2], trained=trained)
        assert str(caught.value) == (
            f"trained ({len(trained)} of them) must be one per token (2), and of a file with a loss mask; "
            "pass loss_mask=True to the writer"
        )
        writer.abort()


def test_bytes_that_were_lost_are_noticed(tmp_path: Path) -> None:
    path, partial = tmp_path / "a.packed", tmp_path / "unfinished"
    cut_off = PackedFileWriter(path, vocab_size=300, partial=partial)
    cut_off.write([1] * 10)
    state = cut_off.checkpoint()
    cut_off.abort()
    partial.write_bytes(partial.read_bytes()[:-1])
    with pytest.raises(DataError, match=r"unfinished must hold at least 4116 bytes; bytes were lost: start again"):
        PackedFileWriter(path, vocab_size=300, partial=partial, state=state)
