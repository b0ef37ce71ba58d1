"""A packed file read piece by piece, in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from modlib.data.packed.file import PackedFile

BATCH_TOKENS = 1 << 22
"""Tokens looked at or copied at once; a longer document is copied alone, from the page cache."""
Ids = npt.NDArray[Any]
Numbers = npt.NDArray[np.int64]


def token_batches(packed: PackedFile) -> Iterator[tuple[int, Ids]]:
    """The first token's number, and the tokens, of one stretch of a file after the other."""
    for start in range(0, packed.num_tokens, BATCH_TOKENS):
        yield start, packed.tokens[start : start + BATCH_TOKENS]


def document_batches(
    offsets: npt.NDArray[Any],
    first: int = 0,
    last: int | None = None,
    batch_tokens: int | None = None,
    batch_documents: int | None = None,
) -> Iterator[tuple[int, int]]:
    """Documents first..last-1 in batches (first, behind the last) of at most batch_tokens, or one longer document.

    Args:
        offsets: Of every document, and of the end.
        first: The first document.
        last: Behind the last document; None is all of them.
        batch_tokens: None is BATCH_TOKENS.
        batch_documents: At most so many of them; None is batch_tokens.
    """
    most = BATCH_TOKENS if batch_tokens is None else batch_tokens
    last = len(offsets) - 1 if last is None else last
    while first < last:
        upper = min(last, first + (most if batch_documents is None else batch_documents))
        room = int(offsets[first]) + most
        behind = first + int(np.searchsorted(offsets[first : upper + 1], room, side="right")) - 1
        behind = max(behind, first + 1)
        yield first, behind
        first = behind
