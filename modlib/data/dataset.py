"""What training needs to know of a dataset."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol


class Dataset(Protocol):
    """Samples by index, and what is said about them in the plan, in checkpoints and in metrics.

    A dataset may also have `__getitems__(indices)` (many samples at once, much faster), `read_ahead(indices)` (tells
    the system what is read next), `check_unchanged()` (raises DataError when its files were changed since they were
    opened), `check_tokenizer(fingerprint)`, `tokenizer_path` (its tokenizer's file, or None), `end_of_document_id` (the
    token that ends each document, or None), `padding` (share of its tokens that is none) and a parameter
    `intra_document_masking`, with which it gives windows with document ids. It must survive pickling, for loader
    workers that are spawned.
    """

    name: str
    """A path or a name, for people; `data.corpus.tokenizer_path` finds its tokenizer by it."""
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


def tokenizer_path_of(dataset: Any) -> Path | None:
    """The tokenizer file of a dataset: what it says itself, else what is kept beside its file; None without one."""
    if hasattr(dataset, "tokenizer_path"):
        return None if dataset.tokenizer_path is None else Path(dataset.tokenizer_path)
    from modlib.data.corpus import tokenizer_path

    return tokenizer_path(dataset.name) if hasattr(dataset, "name") else None
