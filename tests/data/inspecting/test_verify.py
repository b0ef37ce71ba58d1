from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings

from modlib.data.inspecting import verify as packed_verify
from modlib.data.inspecting.verify import verify
from modlib.data.packed import pieces
from modlib.data.packed.file import PackedFile
from modlib.data.packed.header import HEADER_BYTES, encode_header
from modlib.runtime.errors import EXIT_DATA, DataError
from tests.data.packed_lists import documents_of_ids, write

DOCUMENTS = [[1, 2, 0], [], [3, 299, 0], [4, 5]]


def spoil(path: Path, offset: int, data: bytes, *, rehash: bool = False, **header: object) -> None:
    """Overwrite bytes; with rehash, the header says what the file now holds."""
    old = PackedFile(path).header
    raw = bytearray(path.read_bytes())
    raw[offset : offset + len(data)] = data
    if rehash:
        digest = hashlib.sha256(raw[HEADER_BYTES:]).hexdigest()
        raw[:HEADER_BYTES] = encode_header(replace(old, sha256=digest, **header))  # type: ignore[arg-type]
    path.write_bytes(raw)


@given(documents_of_ids)
@settings(max_examples=30)
def test_whatever_was_written_is_good(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, documents: list[list[int]]
) -> None:
    monkeypatch.setattr(packed_verify, "_CHUNK_BYTES", 64)
    monkeypatch.setattr(pieces, "BATCH_TOKENS", 3)
    seen: list[tuple[int, int]] = []
    found = verify(write(tmp_path / "a", documents, end_of_document_id=0), lambda *done: seen.append(done))
    filled = [document for document in documents if document]
    assert found.num_empty == len(documents) - len(filled)
    assert found.num_without_end == sum(document[-1] != 0 for document in filled)
    assert seen[-1][0] == seen[-1][1] == found.packed.header.file_bytes


def test_a_flipped_bit_is_found(tmp_path: Path) -> None:
    path = write(tmp_path / "a", DOCUMENTS)
    spoil(path, HEADER_BYTES, b"\x07")
    with pytest.raises(DataError) as caught:
        verify(path)
    lines = str(caught.value).splitlines()
    assert lines[0].startswith(f"SHA-256 of the contents of {path} (")
    assert lines[1] == f"{path} is damaged or was packed wrongly: copy it again or pack it again"
    assert caught.value.exit_code == EXIT_DATA


def test_an_id_out_of_vocabulary_is_named_with_its_place(tmp_path: Path) -> None:
    path = write(tmp_path / "a", DOCUMENTS)
    spoil(path, HEADER_BYTES + 2 * 4, (500).to_bytes(2, "little"), rehash=True)
    with pytest.raises(DataError) as caught:
        verify(path)
    assert str(caught.value).splitlines()[0] == (
        f"token id (500) at token 4, byte {HEADER_BYTES + 8}, document 2 of {path} must be below its vocab_size (300)"
    )


def test_everything_wrong_is_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a", DOCUMENTS)
    place = PackedFile(path).header.sections["documents"][0]
    spoil(path, place + 8, (5).to_bytes(8, "little"))
    spoil_offsets_checked_late(monkeypatch)
    spoil(path, place - 1, b"\x01")
    with pytest.raises(DataError) as caught:
        verify(path)
    text = str(caught.value)
    assert "SHA-256 of the contents" in text
    assert f"document 1 of {path} (tokens 5 to 3) must lie in order within its 8 tokens" in text
    assert f"byte {place - 1} of {path} (1) must be 0: it lies between two sections" in text


def spoil_offsets_checked_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """As for a file of many documents: opening leaves their order to verify."""
    monkeypatch.setattr("modlib.data.packed.file._OFFSETS_CHECKED_ON_OPEN", 0)


def test_a_wrong_largest_id_is_found(tmp_path: Path) -> None:
    path = write(tmp_path / "a", DOCUMENTS)
    spoil(path, HEADER_BYTES, b"", rehash=True, max_token_id=17)
    with pytest.raises(DataError, match=r"max_token_id of .* \(17\) must equal the largest id in it \(299\)"):
        verify(path)


def test_a_loss_mask_is_checked_to_its_end(tmp_path: Path) -> None:
    path = write(tmp_path / "a", DOCUMENTS, loss_mask=True)
    verify(path)
    documents, mask = (PackedFile(path).header.sections[name] for name in ("documents", "loss_mask"))
    assert mask[1] == 1
    spoil(path, sum(documents), b"\5", rehash=True)
    with pytest.raises(DataError, match=rf"byte {sum(documents)} of .*a \(5\) must be 0: it lies between two sections"):
        verify(path)
    path = write(tmp_path / "b", [*DOCUMENTS, [6]], loss_mask=True)
    verify(path)  # nine tokens: the last byte has one bit
    place = sum(PackedFile(path).header.sections["loss_mask"]) - 1
    spoil(path, place, b"\x03", rehash=True)
    with pytest.raises(DataError) as caught:
        verify(path)
    assert str(caught.value).splitlines()[0] == (
        f"byte {place} of {path} (3) must be below 2: the last of the loss mask, it has bits of 1 tokens"
    )
    spoil(path, place, b"\x01")
    with pytest.raises(DataError, match="SHA-256 of the contents"):
        verify(path)
