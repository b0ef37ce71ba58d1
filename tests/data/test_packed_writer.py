from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest

from modlib.data.packed_file import PackedFile
from modlib.data.packed_writer import PackedFileWriter
from modlib.runtime import faults
from modlib.runtime.errors import DataError


def test_same_contents_give_the_same_bytes_however_they_are_cut(tmp_path: Path) -> None:
    tokens = np.arange(1000) % 700
    with PackedFileWriter(tmp_path / "a", vocab_size=700) as writer:
        writer.write_documents(tokens, [300, 0, 700], 5)
    with PackedFileWriter(tmp_path / "b", vocab_size=700) as writer:
        for part, num_bytes in ((tokens[:300], 2), (tokens[:0], 0), (tokens[300:], 3)):
            writer.write(part.astype(np.uint32), num_bytes)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert writer.header == PackedFile(tmp_path / "a").header


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
    with pytest.raises(DataError, match=r"a exists; choose another path, remove it, or pass overwrite=True"):
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


def test_what_was_cut_off_is_continued(tmp_path: Path) -> None:
    whole, path, partial = tmp_path / "whole.packed", tmp_path / "a.packed", tmp_path / "unfinished"
    with PackedFileWriter(whole, vocab_size=300) as writer:
        for number in range(6):
            writer.write([number] * number, 2)
    cut_off = PackedFileWriter(path, vocab_size=300, partial=partial)
    for number in range(4):
        cut_off.write([number] * number, 2)
    state = cut_off.checkpoint()
    cut_off.write([299] * 50, 2)  # after the checkpoint: thrown away
    cut_off.abort()
    assert not path.exists()
    with PackedFileWriter(path, vocab_size=300, partial=partial, state=state) as writer:
        for number in range(4, 6):
            writer.write([number] * number, 2)
    assert path.read_bytes() == whole.read_bytes()


def test_bytes_that_were_lost_are_noticed(tmp_path: Path) -> None:
    path, partial = tmp_path / "a.packed", tmp_path / "unfinished"
    cut_off = PackedFileWriter(path, vocab_size=300, partial=partial)
    cut_off.write([1] * 10)
    state = cut_off.checkpoint()
    cut_off.abort()
    partial.write_bytes(partial.read_bytes()[:-1])
    with pytest.raises(DataError, match=r"unfinished must hold at least 4116 bytes; bytes were lost: start again"):
        PackedFileWriter(path, vocab_size=300, partial=partial, state=state)
