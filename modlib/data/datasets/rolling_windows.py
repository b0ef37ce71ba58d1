"""Which tokens of a document are predicted from which, as lm-eval's rolling log-likelihood does it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from modlib.data.packed.file import PackedFile

Numbers = npt.NDArray[np.int64]
Row = tuple[Numbers, int]
"""(ids, predicted): the last `predicted` of the ids are targets, each predicted from all ids before it."""


class RollingWindows:
    """Windows over every document of packed files, each token of a document a target exactly once.

    A document begins after one prefix token, and the token that ends it in the file is left out. Its first window
    predicts up to max_length tokens from the prefix on. Each later one predicts the next max_length tokens, or what is
    left, and is filled up on its left with tokens of the same document, so that it takes max_length inputs. A window of
    n ids has n - 1 inputs. Windows are sorted, longest first.

    Args:
        files: Packed files; all their documents are read.
        max_length: Most inputs per window, at least 1.
        prefix_id: The token before each document.

    Source: lm-evaluation-harness, lm_eval/utils.py, get_rolling_token_windows with context_len 1 and
        make_disjoint_window.
    """

    def __init__(self, files: Sequence[PackedFile], max_length: int, prefix_id: int) -> None:
        self.files, self.prefix_id = files, prefix_id
        tables = [_windows(packed, number, max_length) for number, packed in enumerate(files)]
        table = np.concatenate(tables) if tables else np.empty((0, 5), np.int64)
        self._table: Numbers = table[np.argsort(table[:, 1] - table[:, 2], kind="stable")]

    def __len__(self) -> int:
        return len(self._table)

    def __getitems__(self, indices: Sequence[int] | Numbers) -> list[Row]:
        """The windows with these numbers."""
        rows: list[Row] = []
        for number, start, end, predicted, is_first in self._table[np.asarray(indices)].tolist():
            tokens = self.files[number].tokens
            prefix = [self.prefix_id] if is_first else []  # in the place of the token before the document
            ids = np.concatenate((prefix, tokens[start + is_first : end])).astype(np.int64)
            rows.append((ids, predicted))
        return rows


def _windows(packed: PackedFile, number: int, max_length: int) -> Numbers:
    """Rows of (number, start, end, predicted, is_first): tokens start..end-1 of file `number`, the last are targets."""
    offsets = np.asarray(packed.document_offsets, np.int64)
    begins, lengths = offsets[:-1], np.diff(offsets)
    if (end_id := packed.header.end_of_document_id) is not None and len(packed.tokens):
        last: npt.NDArray[Any] = packed.tokens[np.maximum(offsets[1:] - 1, 0)]
        lengths = lengths - ((lengths > 0) & (last == end_id))
    counts = -(-lengths // max_length)
    document = np.repeat(np.arange(len(lengths)), counts)
    done = max_length * (np.arange(len(document)) - np.repeat(np.cumsum(counts) - counts, counts))
    predicted = np.minimum(max_length, lengths[document] - done)
    ends = begins[document] + done + predicted
    starts = np.where(done == 0, begins[document] - 1, ends - max_length - 1)
    return np.stack([np.full_like(ends, number), starts, ends, predicted, done == 0], axis=1)
