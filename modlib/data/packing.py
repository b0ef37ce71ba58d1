"""Documents of text to a packed token file."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from modlib.data.packed_header import PackedHeader
from modlib.data.packed_writer import PackedFileWriter
from modlib.data.shards import unsharded
from modlib.data.tokenizer import Tokenizer
from modlib.runtime.errors import DataError

_BATCH_CHARACTERS = 1 << 22  # what is tokenized at once: bounds memory, and keeps all cores busy


def pack_documents(
    documents: Iterable[str],
    path: str | os.PathLike[str],
    tokenizer: Tokenizer,
    *,
    end_of_document: str | None = None,
    info: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> PackedHeader:
    """Tokenize documents and write them, each followed by the end-of-document token.

    None is dropped: an empty document is the end-of-document token alone. Memory is bounded, whatever their number.

    Args:
        documents: Texts, in the order they are written.
        path: The file to make.
        tokenizer: Makes the ids.
        end_of_document: Text of the token that ends a document; None takes a well-known one the tokenizer has.
        info: Kept in the header.
        overwrite: Whether an existing file is replaced.

    Returns:
        The header, with the counts.

    Raises:
        DataError: The file exists or cannot be written, or the tokenizer has no end-of-document token.
    """
    end_id = tokenizer.end_of_document_id(end_of_document)
    writer = PackedFileWriter(
        path,
        vocab_size=tokenizer.vocab_size,
        tokenizer_fingerprint=tokenizer.fingerprint,
        end_of_document_id=end_id,
        info=info,
        overwrite=overwrite,
    )
    with writer:
        for batch in _batches(documents):
            ids, lengths = tokenizer.encode_batch(batch)
            ids = np.insert(ids, np.cumsum(lengths), end_id)
            writer.write_documents(ids, lengths + 1, sum(len(text.encode("utf-8")) for text in batch))
    assert writer.header is not None
    return writer.header


def tokenizer_beside(path: Path) -> Path:
    """Where the tokenizer of a packed file is kept: `books.packed` -> `books.tokenizer.json`; shards share one."""
    return path.with_name(f"{unsharded(path).stem}.tokenizer.json")


def read_text(path: Path) -> str:
    """A UTF-8 text file, a byte-order mark dropped, line ends as they are.

    Raises:
        DataError: It cannot be read, or is not UTF-8; the message gives the byte.
    """
    try:
        return path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}; check the path") from error
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} must be UTF-8 text; byte {error.start} is not ({error.reason}): convert it first"
        ) from error


def _batches(documents: Iterable[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    size = 0
    for text in documents:
        batch.append(text)
        size += len(text) + 1
        if size >= _BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
