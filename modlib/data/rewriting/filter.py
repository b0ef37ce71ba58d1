"""The documents of a packed token file that a function keeps."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from modlib.data.inspecting.text import require_tokenizer
from modlib.data.packed.header import PackedHeader
from modlib.data.packed.pieces import document_batches
from modlib.data.progress import Progress, no_progress
from modlib.data.rewriting import copying
from modlib.data.text.tokenizer import TextTokenizer
from modlib.runtime.errors import DataError


@dataclass(frozen=True)
class Document:
    """What a function that filters is given.

    Args:
        number: Of the document in its file.
        tokens: Its ids, the end-of-document token included; read-only.
    """

    number: int
    tokens: npt.NDArray[Any]
    _tokenizer: Callable[[], TextTokenizer]

    @cached_property
    def text(self) -> str:
        """Its text without special tokens; decoded when it is asked for."""
        return self._tokenizer().decode(self.tokens, skip_special_tokens=True)


def filter_documents(
    source: str | os.PathLike[str],
    path: str | os.PathLike[str],
    keep: Callable[[Document], bool],
    *,
    tokenizer: str | os.PathLike[str] | None = None,
    name: str | None = None,
    overwrite: bool = False,
    progress: Progress = no_progress,
) -> PackedHeader:
    """Write the documents for which a function returns True, in order.

    How many bytes of text are kept is not known, so the header says none, unless all are kept.

    Args:
        source: A packed file.
        path: The file to make.
        keep: Called with each `Document`, in order.
        tokenizer: For the text; None takes the one beside the file.
        name: Of the function, for errors and the provenance.
        overwrite: Whether an existing file is replaced.
        progress: Called with the tokens done, and all of them.

    Raises:
        DataError: The function raised, or returned something else than True or False; the message names the document.
    """
    packed = copying.open_plain(source)
    name = name or f"{keep.__module__}:{getattr(keep, '__qualname__', type(keep).__name__)}"
    opened: list[TextTokenizer] = []

    def reader() -> TextTokenizer:
        if not opened:
            opened.append(require_tokenizer(packed, tokenizer))
        return opened[0]

    with copying.writer_like(packed, path, overwrite=overwrite) as writer:
        for first, last in document_batches(packed.document_offsets):
            kept = [_kept(keep, name, Document(n, packed.document(n), reader)) for n in range(first, last)]
            starts = np.asarray(packed.document_offsets[first:last])[kept]
            lengths = np.diff(packed.document_offsets[first : last + 1])[kept]
            begin, end = packed.document_offsets[[first, last]].tolist()
            tokens = packed.tokens[begin:end]
            trained = packed.trained(begin, end) if packed.has_loss_mask else None
            if not all(kept):
                tokens = copying.gathered(tokens, starts - begin, lengths)
                trained = None if trained is None else copying.gathered(trained, starts - begin, lengths)
            writer.write_documents(tokens, lengths, trained=trained)
            progress(int(packed.document_offsets[last]), packed.num_tokens)
        if writer.num_documents == packed.num_documents:
            writer.num_bytes_of_text = packed.num_bytes_of_text
    assert writer.header is not None
    copying.copy_tokenizer(packed.path, path)
    copying.write_provenance(path, writer.header, "filter", {"keep": name}, [copying.described(packed)])
    return writer.header


def _kept(keep: Callable[[Document], bool], name: str, document: Document) -> bool:
    try:
        answer = keep(document)
    except DataError:
        raise
    except Exception as error:  # a user's function may raise anything
        raise DataError(
            f"keep ({name}) must return True or False for every document; for document {document.number} it raised "
            f"{type(error).__name__}: {error}"
        ) from error
    if not isinstance(answer, bool | np.bool_):
        raise DataError(
            f"keep ({name}) must return True or False; for document {document.number} it returned {answer!r}"
        )
    return bool(answer)
