"""Megatron-LM's indexed datasets: a .bin with the tokens, and an .idx with the lengths of its sequences.

Layout of the .idx, little-endian: 9 bytes of magic, uint64 version 1, uint8 type of the tokens, uint64 sequences,
uint64 entries of the document index; int32 length of each sequence, int64 offset of each in bytes, int64 document
index: the first sequence of each document, then the number of sequences.

Source: Megatron-LM, megatron/core/datasets/indexed_dataset.py.
"""

from __future__ import annotations

import os
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
from modlib.data.packed.file import PackedFile
from modlib.data.packed.outputs import exists
from modlib.data.packed.pieces import token_batches
from modlib.data.progress import Progress, no_progress
from modlib.runtime.errors import DataError

_MAGIC = b"MMIDIDX\x00\x00"
_HEADER = struct.Struct("<9sQBQQ")
_TYPES = {1: "<u1", 2: "<i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}  # 6 and 7 are floating-point numbers
_WRITTEN = {1: (1, "<u1"), 2: (8, "<u2"), 4: (4, "<i4")}


def megatron_paths(path: str | os.PathLike[str]) -> tuple[Path, Path]:
    """The .bin and the .idx that a prefix, or either of them, means."""
    name = os.fspath(path)
    prefix = name[:-4] if name.endswith((".bin", ".idx")) else name
    return Path(prefix + ".bin"), Path(prefix + ".idx")


def read_megatron(path: str | os.PathLike[str]) -> ForeignTokens:
    """Documents of a .bin and its .idx; a document of several sequences is put together again.

    Args:
        path: The prefix, or either file.

    Raises:
        DataError: Not such files, or an index that does not cover the tokens.
    """
    data, index = megatron_paths(path)
    head = read_bytes(index, 0, _HEADER.size)
    if not head.startswith(_MAGIC) or len(head) < _HEADER.size:
        raise DataError(f"first 9 bytes of {index} ({head[:9]!r}) must be {_MAGIC!r}; it is no index of Megatron-LM")
    _, version, code, num_sequences, num_entries = _HEADER.unpack(head)
    if version != 1:
        raise DataError(f"version of {index} ({version}) must be 1; convert it with the Megatron-LM that wrote it")
    if code not in _TYPES:
        raise DataError(f"type of the tokens of {index} ({code}) must be one of {sorted(_TYPES)}, the integer types")
    size = index.stat().st_size
    least = _HEADER.size + 12 * num_sequences + 8 * num_entries
    if size not in (least, least + num_sequences):  # a multimodal index has one byte more per sequence
        raise DataError(
            f"size of {index} ({size} bytes) must be {least} bytes for {num_sequences} sequences and {num_entries} "
            "entries of documents; the file is damaged: copy it again"
        )
    lengths = np.asarray(mapped(index, "<i4", _HEADER.size, num_sequences), np.int64)
    pointers = mapped(index, "<i8", _HEADER.size + 4 * num_sequences, num_sequences)
    documents = np.asarray(mapped(index, "<i8", _HEADER.size + 12 * num_sequences, num_entries))
    tokens = mapped(data, _TYPES[code])
    ends = _checked_ends(lengths, pointers, tokens.itemsize, data)
    if data.stat().st_size != int(ends[-1]) * tokens.itemsize:
        raise DataError(
            f"size of {data} ({data.stat().st_size} bytes) must be the {int(ends[-1]) * tokens.itemsize} bytes of the "
            f"{num_sequences} sequences in {index.name}; the file is truncated, or of another index"
        )
    return of_array([data, index], tokens, ends[_checked_documents(documents, num_sequences, index)])


def _checked_ends(lengths: Numbers, pointers: Numbers, itemsize: int, path: Path) -> Numbers:
    """Where each sequence begins, in tokens, and the end of the last."""
    ends = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=ends[1:])
    wrong = np.flatnonzero((lengths < 0) | (np.asarray(pointers) != ends[:-1] * itemsize))
    if wrong.size:
        number = int(wrong[0])
        raise DataError(
            f"sequence {number} of {path} ({lengths[number]} tokens at byte {pointers[number]}) must begin at byte "
            f"{ends[number] * itemsize}, where the one before it ends; the index is damaged: copy it again"
        )
    return ends


def _checked_documents(documents: Numbers, num_sequences: int, path: Path) -> Numbers:
    sound = len(documents) and documents[0] == 0 and documents[-1] == num_sequences
    if not sound or (np.diff(documents) < 0).any():
        ends = f"{documents[0]} to {documents[-1]}" if len(documents) else "empty"
        raise DataError(
            f"document index of {path} ({ends}) must rise from 0 to its {num_sequences} sequences; the file is damaged"
        )
    return documents


def write_megatron(
    packed: PackedFile, path: str | os.PathLike[str], *, overwrite: bool = False, progress: Progress = no_progress
) -> list[Path]:
    """Write a .bin and an .idx, one sequence per document; the .idx comes last.

    Raises:
        DataError: One exists or cannot be written, an id does not fit int32, or a document is too long for it.
    """
    data, index = megatron_paths(path)
    code, dtype = _WRITTEN[packed.header.token_width]
    lengths = np.diff(packed.document_offsets)
    most = 2**31 - 1
    if packed.max_token_id > most:
        raise DataError(f"largest id of {packed.path} ({packed.max_token_id}) must be at most {most} for Megatron-LM")
    if lengths.size and lengths.max() > most:
        number = int(lengths.argmax())
        raise DataError(
            f"tokens of document {number} of {packed.path} ({lengths[number]}) must be at most {most} for Megatron-LM"
        )
    if index.exists() and not overwrite:
        raise exists(index)
    with written_aside(data, overwrite) as file:
        for start, tokens in token_batches(packed):
            file.write(tokens.astype(dtype, copy=False).data)
            progress(start + len(tokens), packed.num_tokens)
    with written_aside(index, overwrite) as file:
        file.write(_HEADER.pack(_MAGIC, 1, code, lengths.size, lengths.size + 1))
        file.write(lengths.astype("<i4").data)
        file.write((np.asarray(packed.document_offsets[:-1]) * np.dtype(dtype).itemsize).astype("<i8").data)
        file.write(np.arange(lengths.size + 1, dtype="<i8").data)
    return [data, index]
