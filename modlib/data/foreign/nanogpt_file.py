"""Token ids one after another: nanoGPT's .bin, which is uint16 alone, and with a header .npy and llm.c's .bin."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from modlib.data.foreign.foreign_tokens import (
    ForeignTokens,
    Ids,
    mapped,
    of_array,
    read_bytes,
    written_aside,
)
from modlib.data.packed.file import PackedFile
from modlib.data.packed.pieces import BATCH_TOKENS, token_batches
from modlib.data.progress import Progress, no_progress
from modlib.runtime.errors import DataError

_NPY = b"\x93NUMPY"
_LLM_C_HEADER = 1024  # bytes: 256 numbers, of which three are used
_LLM_C = {(20240520, 1): "<u2", (20240801, 7): "<u4"}
"""(magic, version) of llm.c's files -> their token ids: GPT-2's, Llama 3's. Source: llm.c, dev/data/data_common.py."""


def read_nanogpt(path: str | os.PathLike[str], *, end_of_document_id: int | None = None) -> ForeignTokens:
    """The ids of a .bin, or of a relative that is recognised by its first bytes.

    NumPy's .npy (build-nanogpt's shards) and llm.c's .bin (modded-nanogpt's shards) begin with a header.

    Args:
        path: The file.
        end_of_document_id: Ends each document; None takes all of them as one document. What follows the last one is a
            document too.

    Raises:
        DataError: It cannot be read, or is not whole tokens.
    """
    path = Path(path)
    read_bytes(path, 0, 0)
    tokens = _tokens(path)
    ends = [0] if end_of_document_id is None else _ends(tokens, end_of_document_id)
    offsets = np.array(ends if len(tokens) == ends[-1] else [*ends, len(tokens)], np.int64)
    return of_array([path], tokens, offsets)


def _tokens(path: Path) -> Ids:
    begin = read_bytes(path, 0, _LLM_C_HEADER)
    if begin.startswith(_NPY):
        return _of_npy(path)
    magic, version, count = np.frombuffer(begin[:12].ljust(12, b"\0"), "<i4").tolist()
    if magic in {known for known, _ in _LLM_C}:
        if (magic, version) not in _LLM_C or len(begin) < _LLM_C_HEADER:
            known = ", ".join(f"{version} of {magic}" for magic, version in _LLM_C)
            raise DataError(
                f"{path} begins as a file of llm.c ({len(begin)} bytes, version {version} of {magic}), which must have "
                f"a header of {_LLM_C_HEADER} bytes and version {known}; write its ids without a header, or as .npy"
            )
        dtype = _LLM_C[magic, version]
        there = (path.stat().st_size - _LLM_C_HEADER) // np.dtype(dtype).itemsize
        if count != there:
            raise DataError(
                f"tokens in {path} ({there}) must be as many as its llm.c header says ({count}); the file is "
                "truncated or damaged: copy it again"
            )
        return mapped(path, dtype, _LLM_C_HEADER, count)
    size = path.stat().st_size
    if size % 2:
        raise DataError(f"size of {path} ({size} bytes) must be whole tokens of 2 bytes; it is truncated or no .bin")
    return mapped(path, "<u2")


def _of_npy(path: Path) -> Ids:
    try:
        tokens = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError) as error:
        raise DataError(f"{path} is a NumPy file that cannot be read ({error}); copy it again") from error
    if tokens.ndim != 1 or tokens.dtype.kind not in "iu":
        raise DataError(
            f"{path} is a NumPy array of {tokens.dtype} of shape {tokens.shape}; it must be token ids in one dimension"
        )
    return tokens  # type: ignore[no-any-return]


def _ends(tokens: np.ndarray, end_id: int) -> list[int]:
    """0, and the place behind every document's last token."""
    ends = [np.zeros(1, np.int64)]
    for start in range(0, len(tokens), BATCH_TOKENS):
        ends.append(np.flatnonzero(np.asarray(tokens[start : start + BATCH_TOKENS]) == end_id) + start + 1)
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
