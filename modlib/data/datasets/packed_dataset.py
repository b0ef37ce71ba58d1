"""Training windows cut from a packed token file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from modlib.components import component
from modlib.data.datasets.document_ids import ids_of_slices, num_documents_begun
from modlib.data.datasets.of_packed_file import OfPackedFile
from modlib.data.datasets.windows import (
    Windows,
    count_targets,
    plain,
    separated,
    window_numbers,
)
from modlib.runtime.errors import DataError


@component("dataset", "packed_mem_map_dataset_continuous")
class PackedDataset(OfPackedFile):
    """Windows of seq_len + 1 tokens, one after the other, over all documents of a packed file.

    A window gives seq_len inputs and, shifted by one, seq_len targets.

    With reuse_last_target, windows start seq_len tokens apart: the last target of one is the first input of the next,
    and of N tokens there are (N - 1) // seq_len windows, in which every token but the first (and up to seq_len - 1
    tokens at the end) is a target once. Without it, windows start seq_len + 1 apart and share no token: there are
    N // (seq_len + 1), and the first token of each window is never a target.

    Of a file with a loss mask, such as chat data, windows are `Windows` that say which of their tokens are trained.

    With intra_document_masking, training on a window is training on each of its documents alone: attention stays within
    a document, positions begin anew with each, and its first token is no target. A document that goes on in the next
    window begins anew there, at position 0. The model must take "document_ids", as GPT2 does.

    The contents are compared with the file's SHA-256: of files up to 64 MiB on opening, of larger ones by training,
    before its first step; once for each size, times and inode, see `PackedFile.verify_once`.

    Args:
        path: A packed token file, or a corpus that modlib makes itself, such as "stdlib:train".
        seq_len: Inputs per window, at least 1.
        reuse_last_target: Whether neighbouring windows share one token.
        intra_document_masking: Whether documents in one window are kept apart, see above.

    Raises:
        ConfigError: seq_len is below 1, or there is no such corpus or file.
        DataError: The file is damaged, or shorter than one window.

    Source: Brown et al. 2020, GPT-3, appendix B (full windows over several documents, without a mask between them);
    with one: Zhao et al. 2024, Analysing the Impact of Sequence Composition on Language Model Pre-Training, section 2.
    """

    def __init__(
        self, *, path: str, seq_len: int, reuse_last_target: bool = True, intra_document_masking: bool = False
    ) -> None:
        super().__init__(path, seq_len, intra_document_masking)
        self.reuse_last_target = reuse_last_target
        self.stride = seq_len if reuse_last_target else seq_len + 1
        if self.packed.num_tokens < seq_len + 1:
            raise DataError(
                f"tokens in {self.packed.path} ({self.packed.num_tokens}) must be at least seq_len + 1 ({seq_len + 1}) "
                "for one window; use more text or a shorter SEQ_LEN"
            )
        self._windows = self._view()

    def _view(self) -> npt.NDArray[Any]:
        """Overlapping windows: no table of starts, and one copy per row when gathered."""
        tokens = self.packed.tokens
        count = (len(tokens) - self.seq_len - 1) // self.stride + 1
        strides = (self.stride * tokens.itemsize, tokens.itemsize)
        return np.lib.stride_tricks.as_strided(tokens, (count, self.seq_len + 1), strides, writeable=False)

    def __len__(self) -> int:
        return len(self._windows)

    def __getitem__(self, index: int) -> npt.NDArray[Any] | Windows:
        """Window `index`, (seq_len + 1,), in the file's own integer type."""
        count = len(self)
        if not -count <= index < count:
            raise IndexError(f"window ({index}) must be below the {count} windows of {self.name}")
        row = np.array([index % count])
        return self._tokens(row)[0] if self._is_plain else self._marked(row).row(0)

    def __getitems__(self, indices: Sequence[int] | npt.NDArray[np.integer[Any]]) -> npt.NDArray[Any] | Windows:
        """Many windows at once, (B, seq_len + 1), copied in the file's own integer type.

        Returns:
            An array; Windows with intra_document_masking.

        Raises:
            IndexError: An index is negative or beyond the last window.
        """
        rows = window_numbers(indices, self)
        return self._tokens(rows) if self._is_plain else self._marked(rows)

    def _tokens(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        windows = self._windows[rows]
        if (largest := int(windows.max(initial=0))) > self.packed.max_token_id:
            self.packed.check_ids(largest, rows * self.stride, self.seq_len + 1)
        return windows

    @property
    def _is_plain(self) -> bool:
        """Whether a window is its tokens and nothing else."""
        return not (self.intra_document_masking or self.packed.has_loss_mask)

    def _marked(self, rows: npt.NDArray[np.int64]) -> Windows:
        """Windows that say which of their tokens are trained, and of which document each is."""
        starts, width = rows * self.stride, self.seq_len + 1
        windows = replace(plain(self._tokens(rows)), index=rows)
        if self.packed.has_loss_mask and len(rows):
            trained = np.stack([self.packed.trained(start, start + width) for start in starts.tolist()])
            windows = replace(windows, trained=trained)
        if self.intra_document_masking:
            windows = separated(windows, ids_of_slices(self.packed, starts, np.full(len(rows), width), width))
        return windows

    def read_ahead(self, indices: npt.NDArray[np.int64]) -> None:
        """Tell the system that these windows are read next; see `PackedFile.read_ahead`."""
        self.packed.read_ahead(indices * self.stride, self.seq_len + 1)

    def __getstate__(self) -> dict[str, Any]:  # a loader worker maps the file itself
        return {name: value for name, value in vars(self).items() if name != "_windows"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._windows = self._view()

    @property
    def fingerprint(self) -> str:
        """Changes when the tokens or the way they are cut into windows change; the same on every machine."""
        apart = "/intra_document_masking" if self.intra_document_masking else ""
        return f"sha256:{self.packed.sha256}/seq_len={self.seq_len}/stride={self.stride}{apart}"

    @cached_property
    def num_tokens(self) -> int:
        """Targets in one epoch; those that the loss mask leaves out, and first tokens of masked documents, are none."""
        whole = len(self) * self.seq_len
        if self._is_plain:
            return whole
        if self.packed.has_loss_mask:
            if self.intra_document_masking:
                return count_targets(self)
            return self.packed.count_trained(np.arange(len(self)) * self.stride + 1, np.full(len(self), self.seq_len))
        end = (len(self) - 1) * self.stride + self.seq_len + 1
        if not self.reuse_last_target:  # a document that begins where a window does costs no target
            return whole - num_documents_begun(self.packed, end, self.stride)
        return whole - num_documents_begun(self.packed, end) + 1
