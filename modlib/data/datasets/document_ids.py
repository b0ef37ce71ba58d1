"""Which document each token of a window belongs to: 0, 1, 2, ... within the window."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from modlib.data.packed.file import PackedFile
from modlib.runtime.errors import DataError

Numbers = npt.NDArray[np.int64]
DocumentIds = npt.NDArray[np.int32]


def ids_of_slices(packed: PackedFile, starts: Numbers, lengths: Numbers, width: int) -> DocumentIds:
    """Document numbers (B, width) of B slices of a packed file; what stands behind a slice is one more document.

    Only the part of the document offsets that is looked up is read, whatever the number of documents.

    Args:
        packed: The file.
        starts: First token of each slice, which may be in the midst of a document.
        lengths: Of the slices, 1 to width.
        width: T + 1.

    Raises:
        DataError: The file's document offsets are not in order.
    """
    offsets = packed.document_offsets
    first = np.searchsorted(offsets, starts, side="right")  # the next document that begins behind the start
    counts = np.searchsorted(offsets, starts + lengths, side="left") - first
    rows, places = _flat(first, np.maximum(counts, 0))
    places = offsets[places] - starts[rows]
    falls = (places[1:] < places[:-1]) & (rows[1:] == rows[:-1])
    if (counts < 0).any() or (places < 1).any() or (places >= lengths[rows]).any() or falls.any():
        raise DataError(f"document offsets of {packed.path} must be in order; the file is damaged: copy it again")
    padded = np.flatnonzero(lengths < width)
    return _numbered(np.append(rows, padded), np.append(places, lengths[padded]), (len(starts), width))


def ids_of_pieces(lengths: Numbers, counts: Numbers, width: int) -> DocumentIds:
    """Document numbers (B, width) of B windows made of pieces, each a document; padding is one more.

    Args:
        lengths: Of the pieces of all windows, one window after the other.
        counts: Pieces in each window, at least 1.
        width: T + 1.
    """
    rows = np.repeat(np.arange(len(counts)), counts)
    ends = np.cumsum(lengths)
    before = np.concatenate([[0], ends])[np.cumsum(counts) - counts]
    places = ends - before[rows]
    inside = places < width
    return _numbered(rows[inside], places[inside], (len(counts), width))


def num_documents_begun(packed: PackedFile, end: int, stride: int | None = None) -> int:
    """Documents with tokens whose first token is before `end`; those at multiples of `stride` do not count.

    Reads the whole table of documents, in chunks.
    """
    total, per_chunk = 0, 1 << 20
    for start in range(0, packed.num_documents, per_chunk):
        part = packed.document_offsets[start : start + per_chunk + 1]
        counted = (part[1:] > part[:-1]) & (part[:-1] < end)
        if stride is not None:
            counted &= part[:-1] % stride != 0
        total += int(np.count_nonzero(counted))
    return total


def _flat(first: npt.NDArray[Any], counts: npt.NDArray[Any]) -> tuple[Numbers, Numbers]:
    """Ranges first .. first + count, one after the other, and which row each number is of."""
    rows = np.repeat(np.arange(len(first)), counts)
    return rows, np.arange(len(rows)) + np.repeat(first - (np.cumsum(counts) - counts), counts)


def _numbered(rows: Numbers, places: Numbers, shape: tuple[int, int]) -> DocumentIds:
    begins = np.zeros(shape, np.int32)
    begins[rows, places] = 1
    return np.cumsum(begins, axis=1, dtype=np.int32)
