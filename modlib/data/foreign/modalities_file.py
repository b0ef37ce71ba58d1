"""Modalities' packed files: .pbin, and the .idx of a JSONL file.

Layout of a .pbin: uint64 bytes of the data, uint32 bytes per token (little-endian both); the data, documents back to
back; then a pickled list of (offset, length) in bytes, relative to the data (before 2024: to the file).
"""

from __future__ import annotations

import os
import pickle
import struct
from pathlib import Path

import numpy as np

from modlib.data.foreign.foreign_tokens import (
    ForeignTokens,
    Numbers,
    mapped,
    of_array,
    read_bytes,
    written_aside,
)
from modlib.data.foreign.restricted_pickle import read_pairs
from modlib.data.packed.file import TOKEN_DTYPES, PackedFile
from modlib.data.packed.pieces import token_batches
from modlib.data.progress import Progress, no_progress
from modlib.runtime.errors import DataError

_HEADER = struct.Struct("<QI")


def read_modalities(path: str | os.PathLike[str], *, trust_lengths: bool = False) -> ForeignTokens:
    """Documents of a .pbin; its pickled index is read by `restricted_pickle`, in 16 bytes per document.

    Args:
        path: The .pbin.
        trust_lengths: Takes the lengths in the index, and documents back to back, where the offsets contradict them;
            files from Modalities' `merge_packed_data` need it: their offsets are 12 bytes short per file.

    Raises:
        DataError: Not such a file, one that was never finished, or an index that does not cover the data.
    """
    path = Path(path)
    head = read_bytes(path, 0, _HEADER.size)
    size = path.stat().st_size
    if len(head) < _HEADER.size:
        raise DataError(f"size of {path} ({size} bytes) must be at least {_HEADER.size} bytes; it is no .pbin")
    num_bytes, width = _HEADER.unpack(head)
    if width not in TOKEN_DTYPES:
        raise DataError(f"bytes per token of {path} ({width}) must be 1, 2 or 4; it is no .pbin, or is damaged")
    if num_bytes == 0 and size > _HEADER.size:
        raise DataError(f"bytes of data of {path} (0) must be above 0: packing was never finished; pack it again")
    if num_bytes % width or _HEADER.size + num_bytes >= size:
        raise DataError(
            f"bytes of data of {path} ({num_bytes}) must be whole tokens of {width} bytes and leave room for the index "
            f"in its {size} bytes; the file is truncated: copy it again"
        )
    pairs = read_pairs(read_bytes(path, _HEADER.size + num_bytes), path)
    offsets = _token_offsets(pairs, num_bytes, width, path, trust_lengths)
    return of_array([path], mapped(path, f"<u{width}", _HEADER.size, num_bytes // width), offsets)


def read_modalities_index(path: str | os.PathLike[str]) -> Numbers:
    """Offset and length in bytes of every line, (n, 2), from the .idx that Modalities makes of a JSONL file.

    Raises:
        DataError: It is no such file.
    """
    return read_pairs(read_bytes(Path(path)), Path(path))


def _token_offsets(pairs: Numbers, num_bytes: int, width: int, path: Path, trust_lengths: bool) -> Numbers:
    starts, lengths = pairs[:, 0], pairs[:, 1]
    offsets = np.zeros(len(pairs) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    wrong = np.flatnonzero((lengths < 0) | (lengths % width != 0))
    if wrong.size:
        number = int(wrong[0])
        raise DataError(
            f"length of document {number} of {path} ({lengths[number]} bytes) must be whole tokens of {width} bytes; "
            "the index is damaged: pack it again"
        )
    if offsets[-1] != num_bytes:
        raise DataError(
            f"documents in the index of {path} ({len(pairs)} with {offsets[-1]} bytes together) must cover its "
            f"{num_bytes} bytes of data; the index is damaged: pack it again"
        )
    # before 2024 Modalities counted the header in: every offset is 12 too large, and the lengths are right
    expected = offsets[:-1] + (_HEADER.size if len(starts) and starts[0] == _HEADER.size else 0)
    wrong = np.flatnonzero(starts != expected)
    if wrong.size and not trust_lengths:
        number = int(wrong[0])
        where = f"document {number - 1} ends" if number else "the data begins"
        raise DataError(
            f"offset of document {number} of {path} ({starts[number]}) must be {expected[number]}, where {where}; "
            "files from Modalities' merge_packed_data have such offsets, and right lengths: --trust_lengths "
            "(trust_lengths=True) takes those"
        )
    return offsets // width


def write_modalities(
    packed: PackedFile, path: str | os.PathLike[str], *, overwrite: bool = False, progress: Progress = no_progress
) -> list[Path]:
    """Write a .pbin. Memory: about 200 bytes per document, for the index's pickle.

    Raises:
        DataError: It exists or cannot be written.
    """
    path = Path(path)
    if not packed.num_tokens:
        raise DataError(f"tokens of {packed.path} (0) must be at least 1; Modalities cannot read an empty .pbin")
    width = packed.header.token_width
    with written_aside(path, overwrite) as file:
        file.write(_HEADER.pack(packed.num_tokens * width, width))
        for start, tokens in token_batches(packed):
            file.write(tokens.data)
            progress(start + len(tokens), packed.num_tokens)
        offsets = np.asarray(packed.document_offsets) * width
        pickle.dump(list(zip(offsets[:-1].tolist(), np.diff(offsets).tolist(), strict=True)), file, protocol=4)
    return [path]
