"""Any part of a packed token file, and its text."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from modlib.data.corpora import corpus
from modlib.data.datasets.of_packed_file import check_tokenizer
from modlib.data.datasets.packed_dataset import PackedDataset
from modlib.data.packed.file import PackedFile
from modlib.data.text.chat_probe import with_marks
from modlib.data.text.tokenizer import TextTokenizer
from modlib.data.tokenizers.from_files import load_tokenizer, tokenizer_path
from modlib.runtime.errors import ConfigError, DataError


@dataclass(frozen=True)
class Part:
    """Some tokens of a file.

    Args:
        name: What they are, for people.
        start: Number of the first token in the file.
        tokens: Their ids.
        trained: Whether each is trained; None for a file without a loss mask, of which all are.
    """

    name: str
    start: int
    tokens: npt.NDArray[Any]
    trained: npt.NDArray[np.bool_] | None


def part_of(
    packed: PackedFile,
    *,
    document: int | None = None,
    window: int | None = None,
    seq_len: int | None = None,
    span: tuple[int, int] | None = None,
) -> Part:
    """A document, a training window, or any range of tokens.

    Args:
        packed: The file.
        document: Number of a document.
        window: Number of a window, as `PackedDataset` cuts them: seq_len + 1 tokens, seq_len apart.
        seq_len: Goes with window.
        span: First token, and behind the last.

    Raises:
        ConfigError: Not exactly one of document, window and span, a window without seq_len, or there is no such part.
    """
    given = [name for name, value in (("document", document), ("window", window), ("range", span)) if value is not None]
    if len(given) != 1:
        raise ConfigError(
            f"what to show ({' and '.join(given) or 'nothing'}) must be one of --document N, --window N with --seq_len "
            "T, and --range A:B; give one of them"
        )
    if document is not None:
        _check_number("document", document, packed.num_documents, f"documents of {packed.path}")
        start = int(packed.document_offsets[document])
        return _part(packed, f"document {document}", start, len(packed.document(document)))
    if window is not None:
        if seq_len is None:
            raise ConfigError(f"seq_len (None) must be given with window ({window}); add --seq_len T")
        dataset = PackedDataset(path=os.fspath(packed.path), seq_len=seq_len)
        _check_number("window", window, len(dataset), f"windows of {packed.path} with seq_len {seq_len}")
        return _part(packed, f"window {window}, seq_len {seq_len}", window * dataset.stride, seq_len + 1)
    assert span is not None
    first, last = span
    if not 0 <= first <= last <= packed.num_tokens:
        raise ConfigError(
            f"range ({first}:{last}) must lie in order within the {packed.num_tokens} tokens of {packed.path}"
        )
    return _part(packed, f"tokens {first} to {last}", first, last - first)


def _check_number(what: str, number: int, count: int, of: str) -> None:
    if not 0 <= number < count:
        there = f"0 to {count - 1}, the numbers" if count else "one that there is, and there is none"
        raise ConfigError(f"{what} ({number}) must be {there} of the {count} {of}")


def _part(packed: PackedFile, name: str, start: int, count: int) -> Part:
    trained = packed.trained(start, start + count) if packed.has_loss_mask else None
    return Part(name, start, packed.tokens[start : start + count], trained)


def tokenizer_for(packed: PackedFile, tokenizer: str | os.PathLike[str] | None = None) -> TextTokenizer | None:
    """The tokenizer that made a file: the one that is given, else the one kept beside it; None where there is none.

    Raises:
        DataError: The one that is given is another, by its fingerprint, or cannot be read.
    """
    if tokenizer is None:
        found = tokenizer_path(packed.path)
        return None if found is None else load_tokenizer(found)
    opened = load_tokenizer(tokenizer)
    check_tokenizer(packed, opened.fingerprint)
    return opened


def decode(
    path: str | os.PathLike[str],
    *,
    document: int | None = None,
    window: int | None = None,
    seq_len: int | None = None,
    span: tuple[int, int] | None = None,
    tokenizer: str | os.PathLike[str] | None = None,
    skip_special_tokens: bool = False,
    mark_trained: bool = False,
) -> str:
    """The text of a document, a window or a range of a packed file; see `part_of`.

    Args:
        path: A packed file, or a corpus.
        document: See `part_of`, as window, seq_len and span.
        window: See above.
        seq_len: See above.
        span: See above.
        tokenizer: Made the ids; None takes the one beside the file.
        skip_special_tokens: Whether special tokens are left out.
        mark_trained: Whether trained tokens are in white square brackets.

    Raises:
        DataError: There is no such part, or the tokenizer is neither given nor beside the file.
    """
    packed = corpus.open_packed(path)
    part = part_of(packed, document=document, window=window, seq_len=seq_len, span=span)
    reader = require_tokenizer(packed, tokenizer)
    if not mark_trained:
        return reader.decode(part.tokens, skip_special_tokens=skip_special_tokens)
    trained = np.ones(len(part.tokens), np.bool_) if part.trained is None else part.trained
    return with_marks(reader, part.tokens, trained, skip_special_tokens=skip_special_tokens)


def require_tokenizer(packed: PackedFile, tokenizer: str | os.PathLike[str] | None = None) -> TextTokenizer:
    """As `tokenizer_for`, for what cannot do without.

    Raises:
        DataError: The tokenizer is neither given nor beside the file.
    """
    found = tokenizer_for(packed, tokenizer)
    if found is None:
        made = packed.tokenizer_fingerprint[:12] or "not named in the header"
        raise DataError(
            f"tokenizer of {packed.path} ({made}) must lie beside it, as {packed.path.stem}.tokenizer.json (or "
            ".model) or tokenizer.json with that fingerprint; put it there, or name it with --tokenizer"
        )
    return found


def documents_at(packed: PackedFile, start: int, count: int) -> tuple[int, npt.NDArray[np.int64]]:
    """The document that holds a token, and where later documents begin among the `count` tokens from there."""
    offsets: Any = packed.document_offsets
    first = int(np.searchsorted(offsets, start, side="right")) - 1
    behind = int(np.searchsorted(offsets, start + count, side="left"))
    return first, np.asarray(offsets[first + 1 : behind], np.int64) - start
