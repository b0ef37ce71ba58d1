"""The first 4,096 bytes of a packed token file: what the file holds, checked before any token is read.

Layout, little-endian, no pickle anywhere:

    0..7     magic: a byte no text starts with, and line ends that a text-mode copy would change
    8..11    uint32 version
    12..15   uint32 length of the JSON text
    16..47   SHA-256 of the JSON text
    48..     JSON text, then zeros up to byte 4,096
    4096..   sections, each starting at a multiple of 64, zeros between them:
             `tokens` (unsigned integers of `token_width` bytes, documents back to back)
             `documents` (uint64 token index of each document's start, then the number of tokens)
             `loss_mask`, in some files (one bit per token, the lowest of a byte first: 1 where it is trained)

The JSON names every section with its offset and length, so later versions can add sections that older readers pass
over, as they do the loss mask. Whoever changes the meaning of an existing section raises the version.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypedDict

from modlib.runtime.errors import DataError
from modlib.runtime.json_files import parse_json

MAGIC = b"\x93MODPK\r\n"
VERSION = 1
HEADER_BYTES = 4096
ALIGNMENT = 64
TOKEN_WIDTHS = (1, 2, 4)
_PRELUDE = struct.Struct("<8sII32s")
_COUNTS = ("num_tokens", "num_documents", "num_bytes_of_text", "vocab_size", "max_token_id", "token_width")


class HeaderRecord(TypedDict):
    """The JSON of a header."""

    token_width: int
    num_tokens: int
    num_documents: int
    num_bytes_of_text: int
    vocab_size: int
    max_token_id: int
    tokenizer_fingerprint: str
    end_of_document_id: int | None
    sha256: str
    sections: dict[str, list[int]]


class HeaderRecordWithInfo(HeaderRecord, total=False):
    """The same, with what need not be there."""

    info: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class PackedHeader:
    """What a packed file says about itself.

    Args:
        token_width: Bytes of one token: 1, 2 or 4.
        num_tokens: Tokens in the file, end-of-document tokens included.
        num_documents: Documents in the file.
        num_bytes_of_text: UTF-8 bytes of the text the tokens came from.
        vocab_size: Ids are below this.
        max_token_id: The largest id in the file; 0 when it holds no token.
        tokenizer_fingerprint: See `modlib.data.text.tokenizer`; empty when no tokenizer is known.
        end_of_document_id: The id that ends every document; None when documents have no such token.
        sha256: Hash of every byte after the header, in hex.
        sections: Name -> (offset, length), in bytes from the start of the file.
        info: Anything else worth keeping, as JSON.
    """

    token_width: int
    num_tokens: int
    num_documents: int
    num_bytes_of_text: int
    vocab_size: int
    max_token_id: int
    tokenizer_fingerprint: str
    end_of_document_id: int | None
    sha256: str
    sections: Mapping[str, tuple[int, int]]
    info: Mapping[str, Any] = field(default_factory=dict)

    @property
    def file_bytes(self) -> int:
        """Size of the whole file."""
        return max((offset + length for offset, length in self.sections.values()), default=HEADER_BYTES)


def narrowest_width(vocab_size: int) -> int:
    """Bytes per token that hold every id below vocab_size: 1 up to 256, 2 up to 65,536, else 4."""
    if not 1 <= vocab_size <= 2**32:
        raise DataError(f"vocab_size ({vocab_size}) must be between 1 and 2^32; check the tokenizer")
    return 1 if vocab_size <= 2**8 else 2 if vocab_size <= 2**16 else 4


def aligned(offset: int) -> int:
    """The next section start at or after this offset."""
    return -(-offset // ALIGNMENT) * ALIGNMENT


def layout(
    num_tokens: int, num_documents: int, token_width: int, *, loss_mask: bool = False
) -> dict[str, tuple[int, int]]:
    """Where the sections of version 1 lie: tokens, documents and, if there is one, the loss mask."""
    tokens = (HEADER_BYTES, num_tokens * token_width)
    documents = (aligned(sum(tokens)), 8 * (num_documents + 1))
    mask = {"loss_mask": (aligned(sum(documents)), -(-num_tokens // 8))} if loss_mask else {}
    return {"tokens": tokens, "documents": documents, **mask}


def encode_header(header: PackedHeader) -> bytes:
    """The 4,096 bytes of a header.

    Raises:
        DataError: info is too long to fit.
    """
    text = json.dumps(vars(header) | {"sections": dict(header.sections)}, sort_keys=True, default=dict).encode()
    room = HEADER_BYTES - _PRELUDE.size
    if len(text) > room:
        raise DataError(f"header ({len(text)} bytes of JSON) must fit in {room} bytes; put less into info")
    prelude = _PRELUDE.pack(MAGIC, VERSION, len(text), hashlib.sha256(text).digest())
    return (prelude + text).ljust(HEADER_BYTES, b"\0")


def decode_header(raw: bytes, path: Path, file_bytes: int) -> PackedHeader:
    """Read and check a header.

    Args:
        raw: The first 4,096 bytes, or fewer when the file is shorter.
        path: For the messages.
        file_bytes: Size of the whole file.

    Raises:
        DataError: Not a packed file, another version, a damaged header, a size the header does not promise, or
            numbers that contradict each other.
    """
    if not raw.startswith(MAGIC) and not (raw and MAGIC.startswith(raw)):
        if not raw[: len(MAGIC)].strip(b"\0") and raw:
            raise DataError(f"{path} starts with zeros: it was never finished, or its beginning is lost; pack it again")
        raise DataError(
            f"first {len(MAGIC)} bytes of {path} ({raw[: len(MAGIC)]!r}) must be {MAGIC!r}; "
            "this is not a packed token file: make one from text with modlib data pack"
        )
    if len(raw) < HEADER_BYTES:
        raise DataError(f"size of {path} ({file_bytes} bytes) must be at least {HEADER_BYTES} bytes; {_TRUNCATED}")
    _, version, length, digest = _PRELUDE.unpack_from(raw)
    if version != VERSION:
        raise DataError(f"format version of {path} ({version}) must be {VERSION}; read it with a modlib that knows it")
    text = raw[_PRELUDE.size : _PRELUDE.size + length]
    if hashlib.sha256(text).digest() != digest:
        raise DataError(
            f"header of {path} is damaged: its SHA-256 does not match; copy the file again or pack it again"
        )
    padding = raw[_PRELUDE.size + length : HEADER_BYTES]
    if (zeros := len(padding) - len(padding.lstrip(b"\0"))) < len(padding):  # which no hash covers
        raise DataError(
            f"byte {_PRELUDE.size + length + zeros} of {path} ({padding[zeros]}) must be 0: the rest of its header is "
            "empty; copy the file again or pack it again"
        )
    header = _from_json(text, path)
    if file_bytes != header.file_bytes:
        lost = header.file_bytes - file_bytes
        what = _TRUNCATED if lost > 0 else f"{-lost} bytes too many were added; {_AGAIN}"
        raise DataError(
            f"size of {path} ({file_bytes} bytes) must equal what its header promises ({header.file_bytes} bytes: "
            f"{header.num_tokens} tokens of {header.token_width} bytes, {header.num_documents} documents); {what}"
        )
    return header


_AGAIN = "copy the file again or pack it again"
_TRUNCATED = f"the file is truncated: {_AGAIN}"


def _from_json(text: bytes, path: Path) -> PackedHeader:
    try:
        fields: dict[str, Any] = dict(parse_json(text, HeaderRecordWithInfo, place="its JSON", finite=True))
        fields["sections"] = {name: (offset, size) for name, (offset, size) in fields["sections"].items()}
        header = PackedHeader(**fields)
    except (ValueError, TypeError) as error:
        raise DataError(f"header of {path} cannot be understood ({error}); {_AGAIN}") from error
    for name in _COUNTS:
        value = getattr(header, name)
        if value < 0:
            raise DataError(f"{name} of {path} ({value!r}) must be a number of at least 0; {_AGAIN}")
    if header.token_width not in TOKEN_WIDTHS:
        raise DataError(f"token_width of {path} ({header.token_width}) must be one of {TOKEN_WIDTHS} bytes; {_AGAIN}")
    if header.num_tokens and header.max_token_id >= header.vocab_size:
        raise DataError(
            f"max_token_id of {path} ({header.max_token_id}) must be below its vocab_size ({header.vocab_size}); "
            "it was packed with a wrong vocab_size: pack it again"
        )
    masked = "loss_mask" in header.sections
    expected = layout(header.num_tokens, header.num_documents, header.token_width, loss_mask=masked)
    for name, place in expected.items():
        if header.sections.get(name) != place:
            raise DataError(
                f"section {name} of {path} ({header.sections.get(name)}) must lie at (offset, bytes) {place} for "
                f"{header.num_tokens} tokens of {header.token_width} bytes and {header.num_documents} documents; "
                f"{_AGAIN}"
            )
    return header
