"""What every command that makes packed files of packed files shares: reading in order, and saying what it read."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from modlib.data.corpora import corpus
from modlib.data.packed.file import PackedFile
from modlib.data.packed.header import PackedHeader
from modlib.data.packed.outputs import provenance_beside, remove_pack_record
from modlib.data.packed.pieces import Ids, Numbers, document_batches
from modlib.data.packed.writer import PackedFileWriter
from modlib.runtime import durable
from modlib.runtime.errors import DataError
from modlib.version import VERSION

_COPIED_ONE_BY_ONE = 32  # tokens per stretch, from which a copy of each beats an index of every token


def open_plain(path: str | os.PathLike[str]) -> PackedFile:
    """Open a packed file, or a corpus, that has nothing but tokens, documents and, perhaps, a loss mask.

    Raises:
        DataError: It is damaged, or has sections that a copy of its documents would lose.
    """
    packed = corpus.open_packed(path)
    more = sorted(set(packed.header.sections) - {"tokens", "documents", "loss_mask"})
    if more:
        raise DataError(
            f"sections of {packed.path} ({', '.join(more)} besides tokens, documents and loss_mask) must be these "
            "alone: the others would be lost; rewrite the file with the command that made it"
        )
    return packed


def writer_like(
    packed: PackedFile, path: str | os.PathLike[str], *, overwrite: bool, **changes: Any
) -> PackedFileWriter:
    """A writer of the same tokens: vocabulary, width, tokenizer, end of document, loss mask or none as in a file."""
    header = packed.header
    settings: dict[str, Any] = {
        "vocab_size": header.vocab_size,
        "tokenizer_fingerprint": header.tokenizer_fingerprint,
        "end_of_document_id": header.end_of_document_id,
        "token_width": header.token_width,
        "loss_mask": packed.has_loss_mask,
        "info": header.info,
    }
    return PackedFileWriter(path, overwrite=overwrite, **(settings | changes))


def copy_documents(
    packed: PackedFile,
    writer: PackedFileWriter,
    first: int = 0,
    last: int | None = None,
    num_bytes_of_text: int = 0,
    done: Callable[[int], None] = lambda _: None,
) -> None:
    """Write documents first..last-1 of a file, in order, in bounded memory; with its loss mask if the writer has one.

    Raises:
        DataError: Their offsets are damaged.
    """
    offsets = packed.document_offsets
    for begin, end in document_batches(offsets, first, last):
        part = np.asarray(offsets[begin : end + 1])
        lengths = np.diff(part)
        tokens = packed.tokens[part[0] : part[-1]]
        if lengths.min() < 0 or part[0] < 0 or len(tokens) != lengths.sum():
            raise DataError(f"document offsets of {packed.path} must rise; the file is damaged: copy it again")
        trained = packed.trained(*part[[0, -1]].tolist()) if writer.has_loss_mask else None
        writer.write_documents(tokens, lengths, trained=trained)
        done(len(tokens))
    writer.num_bytes_of_text += num_bytes_of_text


def gathered(tokens: Ids, starts: Numbers, lengths: Numbers) -> Ids:
    """The stretches of a contiguous array, back to back."""
    ends = np.cumsum(lengths)
    total = int(ends[-1]) if len(ends) else 0
    if total > _COPIED_ONE_BY_ONE * len(lengths):
        flat, width = tokens.view(np.uint8).data, tokens.itemsize
        places = zip((width * starts).tolist(), (width * (starts + lengths)).tolist(), strict=True)
        return np.frombuffer(b"".join([flat[a:b] for a, b in places]), tokens.dtype)  # twice as fast as numpy's way
    places = np.arange(total) + np.repeat(starts - (ends - lengths), lengths)
    found: Ids = tokens[places]
    return found


def described(packed: PackedFile) -> dict[str, Any]:
    """A packed file as one of the inputs of another."""
    return {"path": str(packed.path)} | _of_header(packed.header)


def write_provenance(
    path: str | os.PathLike[str],
    header: PackedHeader | None,
    command: str,
    options: Mapping[str, Any],
    inputs: Sequence[Mapping[str, Any]],
) -> None:
    """Put beside a file what it was made from: the command, its options, and the fingerprints of what went in.

    What told how a file of that name had been packed is removed.

    Raises:
        DataError: It cannot be written.
    """
    record = {
        "command": f"modlib data {command}",
        "modlib": VERSION,
        "options": dict(options),
        "inputs": [dict(one) for one in inputs],
        "output": {"path": str(path)} | ({} if header is None else _of_header(header)),
    }
    beside = provenance_beside(path)
    try:
        durable.atomic_write_text(beside, json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    except OSError as error:
        raise DataError(f"{beside} cannot be written: {error.strerror}; free space or choose another folder") from error
    remove_pack_record(path)


def _of_header(header: PackedHeader) -> dict[str, Any]:
    return {
        "sha256": header.sha256,
        "num_documents": header.num_documents,
        "num_tokens": header.num_tokens,
        "vocab_size": header.vocab_size,
        "tokenizer_fingerprint": header.tokenizer_fingerprint,
    }


def copy_tokenizer(source: str | os.PathLike[str], path: str | os.PathLike[str]) -> None:
    """Put the tokenizer of one packed file beside another made from it, if it is there.

    Raises:
        DataError: It cannot be written.
    """
    from modlib.data.tokenizers.from_files import put_beside, tokenizer_path  # needs the tokenizers library

    found = tokenizer_path(source)
    if found is not None:
        put_beside(found, path)
