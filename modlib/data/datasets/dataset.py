"""What training needs to know of a dataset."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from modlib.data.text.tokenizer import TextTokenizer


class Dataset(Protocol):
    """Samples by index, and what is said about them in the plan, in checkpoints and in metrics.

    A dataset may also be one of the protocols below, and have `tokenizer_path` (its tokenizer's file, or None),
    `end_of_document_id` (the token that ends each document, or None), `padding` (share of its tokens that is none),
    `packed` (the packed file it reads) or `sources` (the datasets it reads), by which `packed_files` finds what is
    hashed before training, and a parameter `intra_document_masking`, with which it gives windows with document ids. It
    must survive pickling, for loader workers that are spawned.
    """

    name: str
    """A path or a name, for people; `tokenizers.from_files.tokenizer_path` finds its tokenizer by it."""
    seq_len: int
    """Targets per sample."""

    def __len__(self) -> int:
        """Samples in one epoch."""
        ...

    def __getitem__(self, index: int) -> Any:
        """One sample, as the run's collator takes it."""
        ...

    @property
    def fingerprint(self) -> str:
        """Changes when a sample or their order changes; the same on every machine."""
        ...

    @property
    def num_tokens(self) -> int:
        """Targets in one epoch."""
        ...

    @property
    def num_documents(self) -> int | None:
        """Documents in it; None where there are none to count."""
        ...

    @property
    def bytes_per_token(self) -> float:
        """UTF-8 bytes of source text per token; 0.0 when unknown."""
        ...

    @property
    def tokenizer_fingerprint(self) -> str:
        """Of the tokenizer that made the tokens; empty when unknown."""
        ...

    def check_vocabulary(self, vocab_size: int) -> None:
        """Raise DataError when a token id may not be below the model's vocab_size."""
        ...


@runtime_checkable
class ReadsMany(Protocol):
    """Gives many samples at once, which is much faster than one by one."""

    def __getitems__(self, indices: npt.NDArray[np.int64]) -> Any: ...


@runtime_checkable
class ReadsAhead(Protocol):
    """Can tell the system which samples are read next."""

    def read_ahead(self, indices: npt.NDArray[np.int64]) -> None: ...


@runtime_checkable
class Watched(Protocol):
    """Raises DataError when its files were changed since they were opened."""

    def check_unchanged(self) -> None: ...


@runtime_checkable
class ChecksTokenizer(Protocol):
    """Raises DataError when another tokenizer than the one with this fingerprint made its tokens."""

    def check_tokenizer(self, fingerprint: str) -> None: ...


def fetch(dataset: Dataset, indices: npt.NDArray[np.int64]) -> Any:
    """These samples, as a collator takes them: all at once where the dataset can, read ahead where it knows how."""
    if isinstance(dataset, ReadsAhead):
        dataset.read_ahead(indices)
    if isinstance(dataset, ReadsMany):
        return dataset.__getitems__(indices)
    return [dataset[index] for index in indices.tolist()]


def tokenizer_path_of(dataset: Any) -> Path | None:
    """The dataset's own tokenizer file, or the one stored next to its file; None if neither exists."""
    if hasattr(dataset, "tokenizer_path"):
        return None if dataset.tokenizer_path is None else Path(dataset.tokenizer_path)
    from modlib.data.tokenizers.from_files import tokenizer_path

    return tokenizer_path(dataset.name) if hasattr(dataset, "name") else None


def tokenizer_of(dataset: Any) -> TextTokenizer | None:
    """The tokenizer of a dataset, which ends documents with the token that ends them there; None where none is kept.

    Raises:
        DataError: It cannot be read.
    """
    from modlib.data.text.boundary_tokens import BEGIN_OF_TEXT, begin_in_all
    from modlib.data.tokenizers.from_files import load_tokenizer

    path = tokenizer_path_of(dataset)
    if path is None:
        return None
    tokenizer = load_tokenizer(path)
    tokenizer.documents_end = getattr(dataset, "end_of_document_id", None)
    tokenizer.documents_begin = begin_in_all(packed.header for packed in packed_files(dataset)).get(BEGIN_OF_TEXT)
    return tokenizer


def packed_files(dataset: Any) -> Iterator[Any]:
    """The packed files that a dataset reads, of all its sources, in their order."""
    if hasattr(dataset, "packed"):
        yield dataset.packed
    for source in getattr(dataset, "sources", ()):
        yield from packed_files(source)
