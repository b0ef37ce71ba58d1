"""nanoGPT's .bin: uint16 token ids and nothing else."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from modlib.data.foreign.foreign_tokens import (
    ForeignTokens,
    mapped,
    of_array,
    read_bytes,
    written_aside,
)
from modlib.data.packed.file import PackedFile
from modlib.data.packed.pieces import BATCH_TOKENS, token_batches
from modlib.data.progress import Progress, no_progress
from modlib.runtime.errors import DataError


def read_nanogpt(path: str | os.PathLike[str], *, end_of_document_id: int | None = None) -> ForeignTokens:
    """The ids of a .bin.

    Args:
        path: The file.
        end_of_document_id: Ends each document; None takes all of them as one document. What follows the last one is a
            document too.

    Raises:
        DataError: It cannot be read, or is not whole tokens.
    """
    path = Path(path)
    read_bytes(path, 0, 0)
    size = path.stat().st_size
    if size % 2:
        raise DataError(f"size of {path} ({size} bytes) must be whole tokens of 2 bytes; it is truncated or no .bin")
    tokens = mapped(path, "<u2")
    ends = [0] if end_of_document_id is None else _ends(tokens, end_of_document_id)
    offsets = np.array(ends if len(tokens) == ends[-1] else [*ends, len(tokens)], np.int64)
    return of_array([path], tokens, offsets)


def _ends(tokens: np.ndarray, end_id: int) -> list[int]:
    """0, and the place behind every document's last token."""
    ends = [np.zeros(1, np.int64)]
    for start in range(0, len(tokens), BATCH_TOKENS):
        ends.append(np.flatnonzero(tokens[start : start + BATCH_TOKENS] == end_id) + start + 1)
    return np.concatenate(ends).tolist()


def write_nanogpt(
    packed: PackedFile, path: str | os.PathLike[str], *, overwrite: bool = False, progress: Progress = no_progress
) -> list[Path]:
    """Write the ids of all documents as uint16; where documents end, only their last token says.

    Raises:
        DataError: It exists or cannot be written, or an id does not fit.
    """
    if packed.max_token_id >= 2**16:
        raise DataError(
            f"largest id of {packed.path} ({packed.max_token_id}) must be below 65536: a nanoGPT .bin is uint16"
        )
    with written_aside(Path(path), overwrite) as file:
        for start, tokens in token_batches(packed):
            file.write(tokens.astype("<u2", copy=False).data)
            progress(start + len(tokens), packed.num_tokens)
    return [Path(path)]
