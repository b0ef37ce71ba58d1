from __future__ import annotations

import ctypes
import mmap
import os
import pickle
import re
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modlib.data.packed import file as packed_file
from modlib.data.packed.file import PackedFile
from modlib.data.packed.header import HEADER_BYTES, MAGIC
from modlib.data.packed.writer import PackedFileWriter
from modlib.runtime.errors import EXIT_DATA, DataError
from tests.changing_files import overwrite_in_place
from tests.data.conftest import MakePacked

DOCUMENTS = st.lists(st.lists(st.integers(0, 2**32 - 1), max_size=20), max_size=12)


@given(DOCUMENTS, st.sampled_from([2**8, 2**16, 2**32]))
@settings(max_examples=40)
def test_any_documents_come_back_from_any_width(tmp_path: Path, documents: list[list[int]], vocab_size: int) -> None:
    documents = [[token % vocab_size for token in document] for document in documents]
    path = tmp_path / "any.packed"
    with PackedFileWriter(path, vocab_size=vocab_size, overwrite=True) as writer:
        for document in documents:
            writer.write(np.array(document, np.int64), num_bytes_of_text=2)
    packed = PackedFile(path)
    packed.verify()
    assert [packed.document(i).tolist() for i in range(packed.num_documents)] == documents
    assert packed.tokens.tolist() == [token for document in documents for token in document]
    assert packed.num_bytes_of_text == 2 * len(documents)
    assert packed.max_token_id == max((token for document in documents for token in document), default=0)
    assert packed.tokens.itemsize == {2**8: 1, 2**16: 2, 2**32: 4}[vocab_size]


def test_reader_survives_replacement_and_pickling(make_packed: MakePacked) -> None:
    packed = PackedFile(make_packed(100))
    make_packed(5000)  # the same name: written aside and renamed over it
    assert packed.tokens.tolist() == list(range(100))
    packed.check_unchanged()
    with pytest.raises(DataError, match=r"contents of .* must stay the ones it was opened with .* was replaced during"):
        pickle.loads(pickle.dumps(packed))
    again = PackedFile(packed.path)
    assert pickle.loads(pickle.dumps(again)).num_tokens == 5000
    assert "5000 tokens" in repr(again)


def test_tokens_cannot_be_written(make_packed: MakePacked) -> None:
    with pytest.raises(ValueError, match="read-only"):
        PackedFile(make_packed(10)).tokens[0] = 1


def test_one_missing_byte_is_refused_with_file_and_bytes(make_packed: MakePacked) -> None:
    path = make_packed(1000)
    size = path.stat().st_size
    os.truncate(path, size - 1)
    with pytest.raises(DataError) as caught:
        PackedFile(path)
    assert str(caught.value) == (
        f"size of {path} ({size - 1} bytes) must equal what its header promises ({size} bytes: 1000 tokens of 2 bytes, "
        "1 documents); the file is truncated: copy the file again or pack it again"
    )
    assert caught.value.exit_code == EXIT_DATA


def test_added_bytes_are_refused(make_packed: MakePacked) -> None:
    path = make_packed(1000)
    with open(path, "ab") as file:
        file.write(b"\0\0")
    with pytest.raises(DataError, match="2 bytes too many were added"):
        PackedFile(path)


@pytest.mark.parametrize("kept", [4, 100, HEADER_BYTES - 1])
def test_cut_inside_the_header_is_refused(make_packed: MakePacked, kept: int) -> None:
    path = make_packed(1000)
    os.truncate(path, kept)
    with pytest.raises(DataError, match=rf"\({kept} bytes\) must be at least 4096 bytes; the file is truncated"):
        PackedFile(path)


def overwrite(path: Path, offset: int, data: bytes) -> None:
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(data)


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("once upon a time" * 1000)
    with pytest.raises(
        DataError,
        match=r"first 8 bytes of .*text.txt \(b'once upo'\) must be .*; this is not .*: make .* modlib data pack$",
    ):
        PackedFile(path)
    path.write_bytes(b"")
    with pytest.raises(DataError, match=r"\(b''\) must be"):
        PackedFile(path)
    path.write_bytes(bytes(10_000))
    with pytest.raises(DataError, match="never finished"):
        PackedFile(path)


def test_missing_file_and_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nothing.packed cannot be opened: No such file or directory; check the path"):
        PackedFile(tmp_path / "nothing.packed")
    with pytest.raises(DataError, match="Is a directory"):
        PackedFile(tmp_path)


def test_text_mode_copy_is_refused(make_packed: MakePacked) -> None:
    path = make_packed(10)
    path.write_bytes(path.read_bytes().replace(b"\r\n", b"\n"))
    with pytest.raises(DataError, match="must be " + re.escape(repr(MAGIC))):
        PackedFile(path)


def test_other_version_is_refused(make_packed: MakePacked) -> None:
    path = make_packed(10)
    overwrite(path, 8, b"\x02")
    with pytest.raises(DataError, match=r"format version of .* \(2\) must be 1; read it with a modlib that knows it"):
        PackedFile(path)


def test_flipped_header_byte_is_refused(make_packed: MakePacked) -> None:
    path = make_packed(10)
    overwrite(path, 60, b"\x7f")
    with pytest.raises(DataError, match="is damaged: its SHA-256 does not match"):
        PackedFile(path)


def test_flipped_token_is_found_by_verify(make_packed: MakePacked) -> None:
    path = make_packed(1000)
    overwrite(path, HEADER_BYTES + 500, b"\xff")
    packed = PackedFile(path)
    with pytest.raises(DataError, match=r"SHA-256 of the contents of .* must equal the one in its header .* damaged"):
        packed.verify()


@pytest.mark.parametrize(("index", "value"), [(0, 1), (2, 10_000), (1, 2000)])
def test_document_offsets_past_the_end_are_refused(tmp_path: Path, index: int, value: int) -> None:
    path = tmp_path / "documents.packed"
    with PackedFileWriter(path, vocab_size=300) as writer:
        writer.write_documents(np.arange(300).repeat(3), [400, 500])
    overwrite(path, PackedFile(path).header.sections["documents"][0] + 8 * index, value.to_bytes(8, "little"))
    with pytest.raises(DataError, match=r"document offsets of .* must run from 0|document 1 of .* must lie in order"):
        PackedFile(path)


def test_documents_that_are_not_there(make_packed: MakePacked, tmp_path: Path) -> None:
    with PackedFileWriter(tmp_path / "none.packed", vocab_size=300):
        pass
    text = rf"^document \(-1\) must be none: there is no document in {tmp_path / 'none.packed'}; choose another number$"
    with pytest.raises(DataError, match=text):
        PackedFile(tmp_path / "none.packed").document(-1)
    with pytest.raises(DataError, match=r"^document \(1\) must be 0 to 0 in .*; choose another number$"):
        PackedFile(make_packed(10)).document(1)


def test_change_in_place_is_found_and_a_touch_is_not_a_change(make_packed: MakePacked) -> None:
    path = make_packed(1000)
    packed = PackedFile(path)
    os.utime(path, ns=(1, 1))
    packed.check_unchanged()
    overwrite(path, HEADER_BYTES + 10, b"\x55")
    os.utime(path, ns=(2, 2))
    with pytest.raises(DataError, match="SHA-256"):
        packed.check_unchanged()
    other = make_packed(1000, vocab_size=500, name="other.packed").read_bytes()
    overwrite(path, 0, other)
    os.utime(path, ns=(3, 3))
    with pytest.raises(DataError, match="changed during the run: restore it"):
        packed.check_unchanged()
    with open(path, "ab") as file:
        file.write(b"more")
    with pytest.raises(DataError, match=r"size of .* must stay the .* bytes it had"):
        packed.check_unchanged()


def bytes_read(packed: PackedFile) -> list[int]:
    """Filled with the bytes read whenever the contents are hashed."""
    read: list[int] = []
    packed.reading = lambda done, total: read.append(done)
    return read


def test_contents_changed_in_place_with_their_time_kept_are_refused(make_packed: MakePacked) -> None:
    path = make_packed(1000)
    packed = PackedFile(path)
    packed.verify_once()
    packed.check_unchanged()
    overwrite_in_place(path, HEADER_BYTES + 10, b"\x55")
    with pytest.raises(DataError, match=f"SHA-256 of the contents of {path}"):
        packed.check_unchanged()
    with pytest.raises(DataError, match=f"SHA-256 of the contents of {path}"):  # and stay refused
        packed.check_unchanged()


@pytest.fixture
def remembers_all(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Hashes of files of any size are remembered, in a cache of this test; the folder they are in."""
    monkeypatch.setattr(packed_file, "_REMEMBERED_FROM_BYTES", 1)
    monkeypatch.setenv("MODLIB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "packed"


def test_contents_are_read_once_for_each_identity(make_packed: MakePacked, remembers_all: Path) -> None:
    path = make_packed(1_000_000)  # who writes a file has hashed it
    packed = PackedFile(path)
    read = bytes_read(packed)
    packed.verify_once()
    assert read == []
    path.chmod(0o600)  # no change of the contents: read again, not refused
    packed.check_unchanged()
    assert read[-1] == path.stat().st_size
    again = PackedFile(path)
    read = bytes_read(again)
    again.verify_once()
    again.check_unchanged()
    assert read == []
    again.verify()  # reads whatever is remembered
    assert read[-1] == path.stat().st_size


@pytest.mark.parametrize("part", ["tokens", "loss_mask"])
def test_a_changed_file_is_refused_at_each_start(make_packed: MakePacked, remembers_all: Path, part: str) -> None:
    path = make_packed(1000, loss_mask=True)
    offset, length = PackedFile(path).header.sections[part]
    overwrite_in_place(path, offset + length // 2, b"\x01")
    for _ in range(2):  # a hash that differs is not remembered
        with pytest.raises(DataError, match=rf"SHA-256 of the contents of {path} .* must equal the one in its header"):
            PackedFile(path).verify_once()


def test_an_id_beyond_the_vocabulary_is_named_with_its_place(make_packed: MakePacked) -> None:
    path = make_packed(3_000_000, vocab_size=4096)
    overwrite_in_place(path, HEADER_BYTES + 2 * 2_500_000, b"\xff\xff")
    with pytest.raises(DataError) as caught:
        PackedFile(path).verify_once()
    assert f"SHA-256 of the contents of {path}" in str(caught.value)
    place = f"token 2500000, byte {HEADER_BYTES + 5_000_000}, document 0"
    assert f"), and has token id 65535 at {place}; the file was changed or damaged" in str(caught.value)


def test_what_is_remembered_is_only_a_memory(make_packed: MakePacked, remembers_all: Path) -> None:
    path = make_packed(1000)
    (remembered,) = remembers_all.iterdir()
    remembered.write_text(remembered.read_text().replace(PackedFile(path).sha256, "0" * 64))
    packed = PackedFile(path)
    read = bytes_read(packed)
    packed.verify_once()
    assert read[-1] == path.stat().st_size


def test_a_file_in_another_process_is_verified_if_it_was_in_the_first(
    make_packed: MakePacked, remembers_all: Path
) -> None:
    path = make_packed(1000)
    unverified, verified = PackedFile(path), PackedFile(path)
    verified.verify_once()
    overwrite_in_place(path, HEADER_BYTES + 10, b"\x55")
    assert pickle.loads(pickle.dumps(unverified)).num_tokens == 1000
    with pytest.raises(DataError, match="SHA-256 of the contents"):
        pickle.loads(pickle.dumps(verified))


def test_ids_are_compared_with_the_largest_that_the_header_promises(make_packed: MakePacked) -> None:
    path = make_packed(100, vocab_size=60)
    packed = PackedFile(path)
    stretches = np.array([0, 20, 40]), np.array([10, 10, 10])
    packed.check_ids(59, *stretches)
    overwrite(path, HEADER_BYTES + 43, b"\x50")
    with pytest.raises(DataError) as caught:
        packed.check_ids(80, *stretches)
    assert str(caught.value) == (
        f"token id (80) at token 43, byte {HEADER_BYTES + 43}, document 0 of {path} must be at most 59, the largest "
        "that its header promises; the file was changed or damaged: copy it again or pack it again"
    )
    overwrite(path, HEADER_BYTES + 43, b"\x00")  # and back before it was looked for
    with pytest.raises(DataError, match=rf"token id \(80\) of {path} must be at most 59"):
        packed.check_ids(80, *stretches)


@given(st.lists(st.booleans(), max_size=60), st.data())
@settings(max_examples=60)
def test_the_loss_mask_of_any_tokens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mask: list[bool], data: st.DataObject
) -> None:
    monkeypatch.setattr(packed_file, "_BITS_AT_ONCE", 7)
    path = tmp_path / "a"
    with PackedFileWriter(path, vocab_size=60, loss_mask=True, overwrite=True) as writer:
        writer.write(np.arange(len(mask)), trained=np.array(mask, np.bool_))
    packed = PackedFile(path)
    places = st.integers(0, len(mask))
    stretches = [sorted(pair) for pair in data.draw(st.lists(st.tuples(places, places), max_size=8))]
    for start, stop in stretches:
        assert packed.trained(start, stop).tolist() == mask[start:stop]
    starts, lengths = [a for a, _ in stretches], [b - a for a, b in stretches]
    assert packed.count_trained(starts, lengths) == sum(sum(mask[a:b]) for a, b in stretches)


def test_without_a_loss_mask_every_token_is_trained(make_packed: MakePacked) -> None:
    packed = PackedFile(make_packed(10))
    assert not packed.has_loss_mask
    assert packed.trained(2, 5).tolist() == [True] * 3
    assert packed.count_trained([0, 4], [3, 6]) == 9
    assert repr(packed).endswith("10 tokens, 1 documents)")


def in_memory(packed: PackedFile, token: int) -> bool:
    """Whether the system holds the page of a token, without asking it to read."""
    pages = mmap.PAGESIZE
    address = packed.tokens.ctypes.data + packed.tokens.itemsize * token
    held = ctypes.create_string_buffer(1)
    assert ctypes.CDLL(None).mincore(ctypes.c_void_p(address // pages * pages), ctypes.c_size_t(pages), held) == 0
    return bool(held.raw[0] & 1)


@pytest.mark.skipif(sys.platform != "linux", reason="mincore and fadvise are Linux's")
def test_reading_ahead_brings_the_named_tokens_and_not_the_whole_file(
    make_packed: MakePacked, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = PackedFile(make_packed(2_000_000))
    with open(packed.path, "rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if in_memory(packed, 1_500_000):
        pytest.skip("this file system keeps what it is told to forget")
    packed.read_ahead(np.array([1_500_000]), np.array([1000]))
    assert not in_memory(packed, 1_500_000), "so small a file was read whole when it was verified"
    monkeypatch.setattr("modlib.data.packed.file._READ_WHOLE_BYTES", 100)
    packed = PackedFile(packed.path)
    packed.read_ahead(np.array([500_000, 1_500_000]), np.array([1000, 1000]))
    deadline = time.monotonic() + 20
    while not (in_memory(packed, 500_000) and in_memory(packed, 1_500_999)):
        assert time.monotonic() < deadline
        time.sleep(0.001)
    assert not in_memory(packed, 1_000_000)


@pytest.mark.skipif(sys.platform != "linux", reason="fadvise is Linux's")
def test_nothing_is_told_any_more_while_everything_is_found_in_memory(
    make_packed: MakePacked, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("modlib.data.packed.file._READ_WHOLE_BYTES", 100)
    packed = PackedFile(make_packed(10_000))
    assert int(packed.tokens.max()) == 9999
    told: list[int] = []
    advise = os.posix_fadvise

    def recorded(file: int, offset: int, length: int, advice: int) -> None:
        told.append(offset)
        advise(file, offset, length, advice)

    monkeypatch.setattr(os, "posix_fadvise", recorded)
    for _ in range(10_000):
        before = len(told)
        packed.read_ahead(np.array([5, 50]), 10)
        if len(told) == before:
            break
    assert before >= 2 * 64
    assert set(told) == {HEADER_BYTES + 2 * 5, HEADER_BYTES + 2 * 50}
    assert len(told) == before, "the system was told of pages that are in memory, again and again"
