from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

import pytest

from modlib.data.packed.header import (
    HEADER_BYTES,
    MAGIC,
    PackedHeader,
    decode_header,
    encode_header,
    layout,
    narrowest_width,
)
from modlib.runtime.errors import DataError

HEADER = PackedHeader(
    token_width=2,
    num_tokens=1001,
    num_documents=3,
    num_bytes_of_text=4000,
    vocab_size=4096,
    max_token_id=4000,
    tokenizer_fingerprint="ab" * 32,
    end_of_document_id=0,
    sha256="cd" * 32,
    sections=layout(1001, 3, 2),
    info={"source": "test"},
)


def test_header_comes_back() -> None:
    raw = encode_header(HEADER)
    assert len(raw) == HEADER_BYTES
    assert raw.startswith(MAGIC)
    assert decode_header(raw, Path("x"), HEADER.file_bytes) == HEADER


def test_sections_start_aligned_and_do_not_overlap() -> None:
    sections = layout(1001, 3, 2)
    assert sections == {"tokens": (4096, 2002), "documents": (6144, 32)}
    assert HEADER.file_bytes == 6176


def test_unknown_sections_of_a_later_writer_are_passed_over() -> None:
    later = dataclasses.replace(HEADER, sections=HEADER.sections | {"later": (6208, 126)})
    assert decode_header(encode_header(later), Path("x"), 6208 + 126).num_tokens == 1001


def test_a_loss_mask_lies_behind_the_documents_with_a_bit_per_token() -> None:
    sections = layout(1001, 3, 2, loss_mask=True)
    assert sections == HEADER.sections | {"loss_mask": (6208, 126)}
    masked = dataclasses.replace(HEADER, sections=sections)
    assert decode_header(encode_header(masked), Path("x"), 6208 + 126) == masked
    short = dataclasses.replace(HEADER, sections=HEADER.sections | {"loss_mask": (6208, 125)})
    with pytest.raises(DataError) as caught:
        decode_header(encode_header(short), Path("x"), 6208 + 125)
    assert str(caught.value) == (
        "section loss_mask of x ((6208, 125)) must lie at (offset, bytes) (6208, 126) for 1001 tokens of 2 bytes and "
        "3 documents; copy the file again or pack it again"
    )


@pytest.mark.parametrize(("vocab_size", "width"), [(1, 1), (256, 1), (257, 2), (65_536, 2), (65_537, 4), (2**32, 4)])
def test_narrowest_width(vocab_size: int, width: int) -> None:
    assert narrowest_width(vocab_size) == width


@pytest.mark.parametrize("vocab_size", [0, -1, 2**32 + 1])
def test_impossible_vocabularies_are_refused(vocab_size: int) -> None:
    with pytest.raises(DataError, match=rf"vocab_size \({vocab_size}\) must be between 1 and 2\^32"):
        narrowest_width(vocab_size)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"token_width": 3}, r"token_width of x \(3\) must be one of \(1, 2, 4\) bytes"),
        ({"token_width": 4}, r"section tokens of x \(\(4096, 2002\)\) must lie at .* \(4096, 4004\)"),
        ({"num_tokens": -1}, r"num_tokens of x \(-1\) must be a number of at least 0"),
        ({"num_documents": "3"}, r"its JSON must have a whole number at num_documents, and has '3'"),
        ({"max_token_id": 4096}, r"max_token_id of x \(4096\) must be below its vocab_size \(4096\)"),
        ({"sections": {"tokens": (4096, 2002)}}, r"section documents of x \(None\) must lie at"),
    ],
)
def test_contradictions_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        decode_header(encode_header(dataclasses.replace(HEADER, **change)), Path("x"), HEADER.file_bytes)  # type: ignore[arg-type]


@pytest.mark.parametrize("text", [b"[]", b"{}", b"not json", json.dumps({"sections": {"tokens": 5}}).encode()])
def test_header_that_is_no_header_is_refused(text: bytes) -> None:
    start = MAGIC + (1).to_bytes(4, "little") + len(text).to_bytes(4, "little") + hashlib.sha256(text).digest()
    with pytest.raises(DataError, match="header of x cannot be understood"):
        decode_header((start + text).ljust(HEADER_BYTES, b"\0"), Path("x"), HEADER_BYTES)


@pytest.mark.parametrize("place", [-1, -2000])
def test_the_rest_of_a_header_is_zeros_since_no_hash_covers_it(place: int) -> None:
    raw = bytearray(encode_header(HEADER))
    raw[place] = 1
    with pytest.raises(
        DataError, match=rf"byte {HEADER_BYTES + place} of x \(1\) must be 0: the rest of its header is"
    ):
        decode_header(bytes(raw), Path("x"), HEADER.file_bytes)


@pytest.mark.parametrize("section", ['{"tokens": [Infinity, 1]}', '{"tokens": [1e999, 1]}', "[" * 3000])
def test_odd_json_in_a_header_is_refused(section: str) -> None:
    text = json.dumps(vars(HEADER) | {"sections": "?"}, default=dict).replace('"?"', section).encode()[:4000]
    start = MAGIC + (1).to_bytes(4, "little") + len(text).to_bytes(4, "little") + hashlib.sha256(text).digest()
    with pytest.raises(DataError, match="header of x cannot be understood"):
        decode_header((start + text).ljust(HEADER_BYTES, b"\0"), Path("x"), HEADER_BYTES)


def test_too_much_info_is_refused() -> None:
    with pytest.raises(DataError, match=r"bytes of JSON\) must fit in 4048 bytes; put less into info"):
        encode_header(dataclasses.replace(HEADER, info={"note": "x" * 5000}))
