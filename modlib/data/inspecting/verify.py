"""Whether a packed token file is what was written, and where it is not."""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np

from modlib.data.corpora import corpus
from modlib.data.packed.file import PackedFile
from modlib.data.packed.header import ALIGNMENT, aligned
from modlib.data.packed.pieces import token_batches
from modlib.data.progress import Progress, no_progress
from modlib.runtime.errors import DataError

_CHUNK_BYTES = 1 << 24


@dataclass(frozen=True)
class Verified:
    """What was found in a file with nothing wrong in it.

    Args:
        packed: The file, open.
        num_without_end: Documents that do not end with the end-of-document token that the header names. No damage:
            documents may have been cut. 0 when the header names none.
        num_empty: Documents without a token.
    """

    packed: PackedFile
    num_without_end: int
    num_empty: int


def verify(path: str | os.PathLike[str], progress: Progress = no_progress) -> Verified:
    """Read a whole file: header, sizes, SHA-256, document offsets, every id, and the end of the loss mask.

    Memory does not grow with the file.

    Args:
        path: A packed token file, or a corpus.
        progress: Called with the bytes read so far, and all of them.

    Raises:
        DataError: Something is wrong; the message lists everything that is, with the place of each.
    """
    packed = corpus.open_packed(path)  # checks header and sizes
    before = packed.status()
    problems = []
    found, largest = packed.read_through(progress)
    if found != packed.sha256:
        problems.append(
            f"SHA-256 of the contents of {packed.path} ({found}) must equal the one in its header ({packed.sha256})"
        )
    offsets, without_end, empty = _offset_problems(packed)
    problems += [*offsets, *_id_problems(packed, largest), *_padding_problems(packed), *_mask_problems(packed)]
    if problems:
        problems.append(f"{packed.path} is damaged or was packed wrongly: copy it again or pack it again")
        raise DataError("\n".join(problems))
    packed.remember(before)
    return Verified(packed, without_end, empty)


def _offset_problems(packed: PackedFile) -> tuple[list[str], int, int]:
    """What is wrong with the offsets; and, where nothing is, the documents without end token and without tokens."""
    end_id = packed.header.end_of_document_id
    without_end = empty = 0
    per_chunk = _CHUNK_BYTES // 8
    for first in range(0, packed.num_documents, per_chunk):
        part = packed.document_offsets[first : first + per_chunk + 1]
        wrong = np.flatnonzero((part[1:] < part[:-1]) | (part[:-1] < 0) | (part[1:] > packed.num_tokens))
        if wrong.size:
            index = first + int(wrong[0])
            start, end = packed.document_offsets[index : index + 2].tolist()
            return [
                f"document {index} of {packed.path} (tokens {start} to {end}) must lie in order within its "
                f"{packed.num_tokens} tokens"
            ], 0, 0  # fmt: skip
        filled = part[1:] > part[:-1]
        empty += int(part.size - 1 - np.count_nonzero(filled))
        if end_id is not None:
            without_end += int(np.count_nonzero(packed.tokens[part[1:][filled] - 1] != end_id))
    return [], without_end, empty


def _id_problems(packed: PackedFile, largest: int) -> list[str]:
    if largest == packed.max_token_id:
        return []
    if largest < packed.vocab_size:
        return [f"max_token_id of {packed.path} ({packed.max_token_id}) must equal the largest id in it ({largest})"]
    for start, tokens in token_batches(packed):
        beyond = tokens >= packed.vocab_size
        if beyond.any():
            token = start + int(np.argmax(beyond))
            return [
                f"token id ({packed.tokens[token]}) at {packed.place(token)} of {packed.path} must be below its "
                f"vocab_size ({packed.vocab_size})"
            ]
    return []


def _padding_problems(packed: PackedFile) -> list[str]:
    """Sections start at a multiple of 64, and there are zeros between them."""
    problems = []
    with open(packed.path, "rb") as file:
        for name in ("tokens", "documents") if packed.has_loss_mask else ("tokens",):
            end = sum(packed.header.sections[name])
            file.seek(end)
            between = file.read(aligned(end) - end)
            assert len(between) < ALIGNMENT
            if between.strip(b"\0"):
                place = end + len(between) - len(between.lstrip(b"\0"))
                value = between[place - end]
                problems.append(f"byte {place} of {packed.path} ({value}) must be 0: it lies between two sections")
    return problems


def _mask_problems(packed: PackedFile) -> list[str]:
    """The bits of the loss mask behind the last token are zeros; its size was checked with the header's."""
    bits = packed.num_tokens % 8
    if not packed.has_loss_mask or not bits:
        return []
    place = sum(packed.header.sections["loss_mask"]) - 1
    with open(packed.path, "rb") as file:
        file.seek(place)
        (value,) = file.read(1)
    if value < 1 << bits:
        return []
    return [
        f"byte {place} of {packed.path} ({value}) must be below {1 << bits}: the last of the loss mask, it has bits of "
        f"{bits} tokens"
    ]
