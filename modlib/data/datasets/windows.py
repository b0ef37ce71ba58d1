"""Token windows that say which of their tokens are real: what datasets with padding or a loss mask give a collator."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from modlib.runtime.errors import DataError

Ids = npt.NDArray[Any]
Mask = npt.NDArray[np.bool_]
DocumentIds = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Windows:
    """Token windows of one length, several (B, T + 1) or one (T + 1,).

    Args:
        ids: Token ids of any integer type; padding holds some id of the vocabulary.
        trained: True where a token counts as a target; never at padding. The first of a window is never a target.
        present: True where there is a token, False at padding, which is always at the end.
        index: Which samples of the dataset they are, for error texts; None when nobody knows.
        document_ids: Number of each token's document within its window, counting up; padding has a number of its own.
            None: documents are not kept apart. See `separated`.
    """

    ids: Ids
    trained: Mask
    present: Mask
    index: npt.NDArray[np.int64] | None = None
    document_ids: DocumentIds | None = None

    @property
    def is_plain(self) -> bool:
        """Whether every token is a target, as far as that is known without a look at each."""
        return not any(self.trained.strides) and bool(self.trained.all())

    def row(self, number: int) -> Windows:
        """One of several windows."""
        return Windows(
            self.ids[number],
            self.trained[number],
            self.present[number],
            None if self.index is None else self.index[number : number + 1],
            None if self.document_ids is None else self.document_ids[number],
        )


def separated(windows: Windows, document_ids: DocumentIds) -> Windows:
    """The same windows (B, T + 1) with their documents kept apart.

    Nothing of its own document stands before a document's first token, so that is no target any more.
    """
    trained = windows.trained.copy()
    trained[:, 1:] &= document_ids[:, 1:] == document_ids[:, :-1]
    return replace(windows, trained=trained, document_ids=document_ids)


def padded(rows: Sequence[Ids], length: int, pad_id: int, index: npt.ArrayLike | None = None) -> Windows:
    """Windows of `length` tokens from rows of at most that many, padded at the end.

    Args:
        rows: Token ids; int64 is made of them when they differ in type.
        length: T + 1.
        pad_id: What stands where there is no token.
        index: Which samples they are.
    """
    dtypes = {row.dtype for row in rows}
    ids = np.full((len(rows), length), pad_id, dtypes.pop() if len(dtypes) == 1 else np.int64)
    present = np.zeros(ids.shape, np.bool_)
    for number, row in enumerate(rows):
        ids[number, : len(row)] = row
        present[number, : len(row)] = True
    return Windows(ids, present, present, None if index is None else np.asarray(index, np.int64))


def as_windows(samples: Any) -> Windows:
    """The samples of a batch as Windows, whatever form a dataset gives them.

    Args:
        samples: Windows; an array (B, T + 1); or a sequence of B samples, each Windows of one window, an array
            (T + 1,), or a pair (ids (T + 1,), loss mask (T + 1,) of bool). None of these forms need be alike.

    Raises:
        DataError: They are none of these, or not of one length.
    """
    if isinstance(samples, Windows):
        return samples
    if isinstance(samples, Sequence) and any(_has_mask(sample) for sample in samples):
        return _stack([_one(sample) for sample in samples])
    try:
        ids = np.asarray(samples)
    except ValueError as error:
        lengths = sorted({len(sample) for sample in samples})
        raise DataError(f"lengths of the windows ({lengths}) must be equal; pad the samples, or use Windows") from error
    return plain(ids)


def plain(ids: Ids) -> Windows:
    """Windows of which every token is one, and a target."""
    whole: Mask = np.ndarray(ids.shape, np.bool_, b"\1", strides=(0,) * ids.ndim)  # one byte, seen everywhere
    return Windows(ids, whole, whole)


def window_numbers(indices: Sequence[int] | npt.NDArray[np.integer[Any]], dataset: Any) -> npt.NDArray[np.int64]:
    """The numbers of windows of a dataset, as an array.

    Raises:
        IndexError: One is negative or beyond the last window.
    """
    wanted = np.asarray(indices, dtype=np.int64)
    if wanted.size and (wanted.min() < 0 or wanted.max() >= len(dataset)):
        raise IndexError(
            f"windows ({wanted.min()} to {wanted.max()}) must be 0 to {len(dataset) - 1} of {dataset.name}"
        )
    return wanted


def count_targets(dataset: Any, at_once: int = 1024) -> int:
    """Targets in one epoch of a dataset that gives Windows, by looking at each of them.

    Args:
        dataset: With `__getitems__`.
        at_once: Windows held in memory.
    """
    blocks = (range(start, min(start + at_once, len(dataset))) for start in range(0, len(dataset), at_once))
    return sum(int(dataset.__getitems__(block).trained[:, 1:].sum()) for block in blocks)


def _has_mask(sample: Any) -> bool:
    if isinstance(sample, Windows):
        return True
    return isinstance(sample, tuple) and len(sample) == 2 and getattr(sample[1], "dtype", None) == np.bool_


def _one(sample: Any) -> Windows:
    if isinstance(sample, Windows):
        return sample
    ids, trained = sample if _has_mask(sample) else (sample, np.ones(len(sample), np.bool_))
    return Windows(np.asarray(ids), np.asarray(trained), np.ones(len(ids), np.bool_))


def _stack(rows: list[Windows]) -> Windows:
    shapes = sorted({part.shape for row in rows for part in (row.ids, row.trained, row.present)})
    if len(shapes) != 1:
        raise DataError(f"shapes of ids and masks of a batch ({shapes}) must be equal; check the dataset")
    apart = [row.document_ids for row in rows if row.document_ids is not None]
    if len(apart) not in (0, len(rows)):
        raise DataError(
            f"document_ids ({len(apart)} of {len(rows)} windows) must be present for every window of a batch or for "
            "none; set intra_document_masking alike in all datasets"
        )
    known = all(row.index is not None for row in rows)
    return Windows(
        np.stack([row.ids for row in rows]),
        np.stack([row.trained for row in rows]),
        np.stack([row.present for row in rows]),
        np.concatenate([row.index for row in rows if row.index is not None]) if known else None,
        np.stack(apart) if apart else None,
    )
