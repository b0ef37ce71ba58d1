"""Training windows cut from a packed token file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from modlib.components import component
from modlib.data import corpus
from modlib.data.document_ids import ids_of_slices, num_documents_begun
from modlib.data.packed_file import PackedFile
from modlib.data.windows import Windows, count_targets, plain, separated, window_numbers
from modlib.runtime.errors import ConfigError, DataError

_VERIFIED_ON_OPEN_BYTES = 1 << 26  # below 0.1 s to hash; larger files are hashed by PackedFile.verify() when asked


@component("dataset", "packed_mem_map_dataset_continuous")
class PackedDataset:
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

    The contents of files up to 64 MiB are verified against their hash on opening.

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
        if seq_len < 1:
            raise ConfigError(f"seq_len ({seq_len}) must be at least 1; set SEQ_LEN")
        self.name = os.fspath(path)
        self.seq_len = seq_len
        self.reuse_last_target = reuse_last_target
        self.intra_document_masking = intra_document_masking
        self.packed = open_packed(path)
        self.stride = seq_len if reuse_last_target else seq_len + 1
        tokens = self.packed.tokens
        if len(tokens) < seq_len + 1:
            raise DataError(
                f"tokens in {self.packed.path} ({len(tokens)}) must be at least seq_len + 1 ({seq_len + 1}) for one "
                "window; use more text or a shorter SEQ_LEN"
            )
        count = (len(tokens) - seq_len - 1) // self.stride + 1
        # Overlapping windows as a view: no table of starts, and one copy per row when gathered.
        self._windows: npt.NDArray[Any] = np.lib.stride_tricks.as_strided(
            tokens, (count, seq_len + 1), (self.stride * tokens.itemsize, tokens.itemsize), writeable=False
        )

    def __len__(self) -> int:
        return len(self._windows)

    def __getitem__(self, index: int) -> npt.NDArray[Any] | Windows:
        """Window `index`, (seq_len + 1,), in the file's own integer type."""
        count = len(self)
        if not -count <= index < count:
            raise IndexError(f"window ({index}) must be below the {count} windows of {self.name}")
        if not self._is_plain:
            return self._marked(np.array([index % count])).row(0)
        return self._windows[index]

    def __getitems__(self, indices: Sequence[int] | npt.NDArray[np.integer[Any]]) -> npt.NDArray[Any] | Windows:
        """Many windows at once, (B, seq_len + 1), copied in the file's own integer type.

        Returns:
            An array; Windows with intra_document_masking.

        Raises:
            IndexError: An index is negative or beyond the last window.
        """
        rows = window_numbers(indices, self)
        return self._windows[rows] if self._is_plain else self._marked(rows)

    @property
    def _is_plain(self) -> bool:
        """Whether a window is its tokens and nothing else."""
        return not (self.intra_document_masking or self.packed.has_loss_mask)

    def _marked(self, rows: npt.NDArray[np.int64]) -> Windows:
        """Windows that say which of their tokens are trained, and of which document each is."""
        starts, width = rows * self.stride, self.seq_len + 1
        windows = replace(plain(self._windows[rows]), index=rows)
        if self.packed.has_loss_mask and len(rows):
            trained = np.stack([self.packed.trained(start, start + width) for start in starts.tolist()])
            windows = replace(windows, trained=trained)
        if self.intra_document_masking:
            windows = separated(windows, ids_of_slices(self.packed, starts, np.full(len(rows), width), width))
        return windows

    def read_ahead(self, indices: npt.NDArray[np.int64]) -> None:
        """Tell the system that these windows are read next; see `PackedFile.read_ahead`."""
        self.packed.read_ahead(indices * self.stride, self.seq_len + 1)

    def __reduce__(self) -> tuple[Any, ...]:  # a loader worker maps the file itself
        return (_reopen, (str(self.packed.path), self.seq_len, self.reuse_last_target, self.intra_document_masking))

    @property
    def fingerprint(self) -> str:
        """Changes when the tokens or the way they are cut into windows change; the same on every machine."""
        apart = "/intra_document_masking" if self.intra_document_masking else ""
        return f"sha256:{self.packed.sha256}/seq_len={self.seq_len}/stride={self.stride}{apart}"

    @property
    def bytes_per_token(self) -> float:
        """UTF-8 bytes of source text per token, end-of-document tokens included; 0.0 when the file does not say."""
        return bytes_per_token(self.packed)

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

    @property
    def num_documents(self) -> int:
        """Documents in the file."""
        return self.packed.num_documents

    @property
    def end_of_document_id(self) -> int | None:
        """The token that ends each document; None where there is none."""
        return self.packed.header.end_of_document_id

    @property
    def tokenizer_fingerprint(self) -> str:
        """Of the tokenizer that made the file; empty when the file does not say."""
        return self.packed.tokenizer_fingerprint

    def check_vocabulary(self, vocab_size: int) -> None:
        """Refuse data with ids that the model does not have.

        Args:
            vocab_size: The model's.

        Raises:
            DataError: An id in the file is not below vocab_size.
        """
        check_vocabulary(self.packed, vocab_size)

    def check_tokenizer(self, fingerprint: str) -> None:
        """Refuse data that another tokenizer made; a file that names no tokenizer passes.

        Args:
            fingerprint: Of the tokenizer in use.

        Raises:
            DataError: The fingerprints differ.
        """
        check_tokenizer(self.packed, fingerprint)

    def check_unchanged(self) -> None:
        """See `PackedFile.check_unchanged`."""
        self.packed.check_unchanged()


def _reopen(path: str, seq_len: int, reuse_last_target: bool, intra_document_masking: bool) -> PackedDataset:
    return PackedDataset(
        path=path,
        seq_len=seq_len,
        reuse_last_target=reuse_last_target,
        intra_document_masking=intra_document_masking,
    )


def open_packed(path: str) -> PackedFile:
    """The packed file of a path or corpus; the contents of a file up to 64 MiB are verified.

    Raises:
        ConfigError: There is no such corpus or file.
        DataError: The file is damaged.
    """
    packed = PackedFile(corpus.prepare(path))
    if packed.header.file_bytes <= _VERIFIED_ON_OPEN_BYTES:
        packed.verify()
    return packed


def bytes_per_token(packed: PackedFile) -> float:
    """UTF-8 bytes of text per token; 0.0 when nobody knows, as for the trained tokens of a file with a loss mask."""
    return 0.0 if packed.has_loss_mask else packed.num_bytes_of_text / packed.num_tokens


def check_vocabulary(packed: PackedFile, vocab_size: int) -> None:
    """Raise DataError when an id in the file is not below the model's vocab_size."""
    if packed.max_token_id >= vocab_size:
        raise DataError(
            f"largest token id in {packed.path} ({packed.max_token_id}) must be below the model's vocab_size "
            f"({vocab_size}); set vocab_size to at least {packed.vocab_size}, or pack with the model's tokenizer"
        )


def check_tokenizer(packed: PackedFile, fingerprint: str) -> None:
    """Raise DataError when another tokenizer made the file; one that names no tokenizer passes."""
    own = packed.tokenizer_fingerprint
    if own and own != fingerprint:
        raise DataError(
            f"tokenizer of {packed.path} ({own[:12]}) must be the tokenizer in use ({fingerprint[:12]}); "
            "pack the text with this tokenizer, or use the one the file was made with"
        )
