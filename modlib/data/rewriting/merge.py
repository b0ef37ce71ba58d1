"""Several packed token files as one: documents in the order of the files."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from modlib.data.packed.file import PackedFile
from modlib.data.packed.header import PackedHeader
from modlib.data.progress import Progress, no_progress
from modlib.data.rewriting import copying
from modlib.data.text.boundary_tokens import begin_in_all
from modlib.runtime.errors import ConfigError, DataError


def merge(
    inputs: Sequence[str | os.PathLike[str]],
    path: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    progress: Progress = no_progress,
) -> PackedHeader:
    """Write the documents of all files, the first file's first; its tokenizer is put beside the result.

    When one of the files has a loss mask, the result has one, in which every token of files without one is trained:
    as they would be if each file were trained on.

    Memory: one batch of documents, and 32 bytes per document.

    Args:
        inputs: Packed files; one may be named more than once.
        path: The file to make.
        overwrite: Whether an existing file is replaced.
        progress: Called with the tokens done, and all of them.

    Raises:
        ConfigError: No input.
        DataError: Files of different tokenizers, vocabularies or end-of-document tokens; a damaged file.
    """
    if not inputs:
        raise ConfigError("inputs (0 files) must be at least one packed file; name the files to merge")
    files = [copying.open_plain(name) for name in inputs]
    for other in files[1:]:
        require_alike(files[0], other)
    total, done = sum(packed.num_tokens for packed in files), 0
    known = all(packed.num_bytes_of_text or not packed.num_tokens for packed in files)
    width = max(packed.header.token_width for packed in files)
    info = files[0].header.info
    if any(packed.header.info != info for packed in files):
        info = begin_in_all(packed.header for packed in files)

    def copied(tokens: int) -> None:
        nonlocal done
        done += tokens
        progress(done, total)

    masked = any(packed.has_loss_mask for packed in files)
    changes = {"token_width": width, "info": info, "loss_mask": masked}
    with copying.writer_like(files[0], path, overwrite=overwrite, **changes) as writer:
        for packed in files:
            copying.copy_documents(
                packed, writer, num_bytes_of_text=packed.num_bytes_of_text if known else 0, done=copied
            )
    assert writer.header is not None
    copying.copy_tokenizer(files[0].path, path)
    copying.write_provenance(path, writer.header, "merge", {}, [copying.described(packed) for packed in files])
    return writer.header


def require_alike(first: PackedFile, other: PackedFile) -> None:
    """Raise DataError when the ids of two files do not mean the same."""
    for what, in_first, in_other in (
        ("tokenizer", _named(first), _named(other)),
        ("vocab_size", first.vocab_size, other.vocab_size),
        ("end-of-document id", first.header.end_of_document_id, other.header.end_of_document_id),
    ):
        if in_first != in_other:
            raise _unlike(what, first, in_first, other, in_other)


def _named(packed: PackedFile) -> str:
    return packed.tokenizer_fingerprint[:16] or "not named"


def _unlike(what: str, first: PackedFile, in_first: Any, other: PackedFile, in_other: Any) -> DataError:
    return DataError(
        f"{what} of {other.path} ({in_other}) must equal the one of {first.path} ({in_first}); "
        "pack both with one tokenizer: the same id would mean two things"
    )
