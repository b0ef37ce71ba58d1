"""Documents of text to a packed token file."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from modlib.data.packed.header import PackedHeader
from modlib.data.packed.writer import PackedFileWriter
from modlib.data.text.tokenizer import Tokenizer

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
        end_of_document: Text of the token that ends a document; None takes the tokenizer's choice.
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
