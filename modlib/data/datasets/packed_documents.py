"""Training windows of whole documents from a packed token file."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from modlib.components import component
from modlib.data.datasets.document_ids import ids_of_pieces, ids_of_slices
from modlib.data.datasets.document_windows import (
    MAX_SEQ_LEN,
    LongDocuments,
    Numbers,
    Packing,
)
from modlib.data.datasets.of_packed_file import OfPackedFile
from modlib.data.datasets.window_table import window_table
from modlib.data.datasets.windows import (
    Windows,
    count_targets,
    padded,
    separated,
    window_numbers,
)
from modlib.runtime.errors import ConfigError, DataError, require_choices

logger = logging.getLogger("modlib")


@component("dataset", "packed_documents")
class PackedDocuments(OfPackedFile):
    """Windows of seq_len + 1 tokens that hold whole documents: several short ones each, none split, the rest padding.

    A window's first token is never a target, and a document's first token is predicted from the end of the document
    before it, as in PackedDataset: documents in one window see each other. With intra_document_masking they do not:
    attention stays within a document, positions begin anew with each, and its first token is no target, so that
    training on a window is training on each of its documents alone. Each piece of a document that is cut counts as a
    document. The model must take "document_ids", as GPT2 does.

    With packing "in_order", documents keep their order and a window is closed when the next one does not fit: a window
    is one slice of the file. "best_fit" puts each document, longest first, into the window with the least room that
    still takes it. `padding` says what share of the windows' tokens is padding. Tokens that a loss mask leaves out are
    not trained.

    The table of windows of 65,536 documents or more is made once and kept in $MODLIB_CACHE or ~/.cache/modlib; all
    processes of a machine share its memory. It takes 12 bytes per window in order, or 12 per document and 8 per window.

    A document of more than seq_len + 1 tokens is an error ("refuse"), loses its end ("truncate", counted in
    `num_truncated_tokens`), or is the exception to the rule and "cut" into windows that start seq_len tokens apart, so
    that each of its tokens but the first is a target once; its last piece is packed like a document.

    The contents are compared with the file's SHA-256 as those of PackedDataset are.

    Args:
        path: A packed token file, or a corpus that modlib makes itself, such as "stdlib:train".
        seq_len: Targets per window, at least 1.
        long_documents: See above.
        packing: See above.
        intra_document_masking: Whether documents in one window are kept apart, see above.

    Raises:
        ConfigError: seq_len is below 1 or beyond 32 bits, or there is no such corpus or file.
        DataError: The file is damaged or has no document, or a document is too long and long_documents is "refuse".

    Source: best fit: Ding et al., Fewer Truncations Improve Language Modeling, ICML 2024, section 3.
    """

    def __init__(
        self,
        *,
        path: str,
        seq_len: int,
        long_documents: LongDocuments = "refuse",
        packing: Packing = "in_order",
        intra_document_masking: bool = False,
    ) -> None:
        require_choices(long_documents=(long_documents, LongDocuments), packing=(packing, Packing))
        if seq_len > MAX_SEQ_LEN:
            raise ConfigError(f"seq_len ({seq_len}) must be at most {MAX_SEQ_LEN}; set SEQ_LEN")
        super().__init__(path, seq_len, intra_document_masking)
        self.long_documents = long_documents
        self.packing = packing
        self._table = window_table(self.packed, seq_len, long_documents, packing)
        logger.info(
            "%s: %d windows of whole documents (%s), %.2f%% of them is padding",
            self.name, len(self), packing, 100 * self.padding,
        )  # fmt: skip
        if self.num_truncated_tokens:
            logger.warning(
                "%s: %d tokens beyond seq_len + 1 are left out (long_documents = 'truncate')",
                self.name, self.num_truncated_tokens,
            )  # fmt: skip

    @property
    def num_truncated_tokens(self) -> int:
        """Tokens that are left out because their documents are too long."""
        return self._table.num_truncated_tokens

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, index: int) -> Windows:
        """Window `index`, (seq_len + 1,), in the file's own integer type, with what is padding in it."""
        count = len(self)
        if not -count <= index < count:
            raise IndexError(f"window ({index}) must be below the {count} windows of {self.name}")
        return self.__getitems__([index % count]).row(0)

    def __getitems__(self, indices: Sequence[int] | npt.NDArray[np.integer[Any]]) -> Windows:
        """Many windows at once, (B, seq_len + 1), copied in the file's own integer type.

        Raises:
            IndexError: An index is negative or beyond the last window.
        """
        wanted = window_numbers(indices, self)
        starts, lengths, counts = self._table.pieces(wanted)
        tokens, width = self.packed.tokens, self.seq_len + 1
        stretches = list(zip(starts.tolist(), (starts + lengths).tolist(), strict=True))
        rows = _joined([tokens[start:end] for start, end in stretches], counts)
        pad_id = self.packed.header.end_of_document_id or 0
        windows = padded(rows, width, pad_id, wanted)
        if (largest := int(windows.ids.max(initial=0))) > pad_id:
            self.packed.check_ids(largest, starts, lengths)
        if self.packed.has_loss_mask:
            trained = np.zeros((len(wanted), width), np.bool_)
            masks = _joined([self.packed.trained(start, end) for start, end in stretches], counts)
            for row, mask in zip(trained, masks, strict=True):
                row[: len(mask)] = mask
            windows = replace(windows, trained=trained)
        if not self.intra_document_masking:
            return windows
        if self.packing == "in_order":
            return separated(windows, ids_of_slices(self.packed, starts, lengths, width))
        return separated(windows, ids_of_pieces(lengths, counts, width))

    def read_ahead(self, indices: Numbers) -> None:
        """Tell the system that these windows are read next; see `PackedFile.read_ahead`."""
        starts, lengths, _ = self._table.pieces(indices)
        self.packed.read_ahead(starts, lengths)

    def __getstate__(self) -> dict[str, Any]:  # a loader worker maps the files itself
        return {name: value for name, value in vars(self).items() if name != "_table"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._table = window_table(self.packed, self.seq_len, self.long_documents, self.packing)

    @property
    def fingerprint(self) -> str:
        """Changes when the tokens or the way they are packed change; the same on every machine."""
        settings = f"seq_len={self.seq_len}/{self.long_documents}/{self.packing}"
        apart = "/intra_document_masking" if self.intra_document_masking else ""
        return f"sha256:{self.packed.sha256}/documents/{settings}{apart}"

    @property
    def padding(self) -> float:
        """Share of the windows' tokens that is padding, 0 to 1."""
        return 1.0 - self._table.num_tokens / (len(self) * (self.seq_len + 1))

    @cached_property
    def num_tokens(self) -> int:
        """Targets in one epoch; padding, and what the loss mask leaves out, are none."""
        table = self._table
        if not self.packed.has_loss_mask:
            return table.num_tokens - (table.num_documents if self.intra_document_masking else len(self))
        if self.intra_document_masking:
            return count_targets(self)
        starts, lengths, counts = table.pieces(np.arange(len(table)))
        begins = np.zeros_like(starts)
        begins[np.cumsum(counts) - counts] = 1  # a window's first token is no target
        return self.packed.count_trained(starts + begins, lengths - begins)

    def check_vocabulary(self, vocab_size: int) -> None:
        """Raise DataError when an id in the file, or the one that pads, is not below the model's vocab_size."""
        super().check_vocabulary(vocab_size)
        if (pad_id := self.packed.header.end_of_document_id or 0) >= vocab_size:
            raise DataError(
                f"end-of-document id of {self.packed.path} ({pad_id}), which pads windows, must be below the model's "
                f"vocab_size ({vocab_size}); set vocab_size to at least {self.packed.vocab_size}"
            )


def _joined(parts: list[npt.NDArray[Any]], counts: Numbers) -> list[npt.NDArray[Any]]:
    """One array per window, from the parts of all, one window after the other."""
    if len(parts) == len(counts):
        return parts
    ends = np.cumsum(counts)
    bounds = zip((ends - counts).tolist(), ends.tolist(), strict=True)
    return [np.concatenate(parts[first:last]) for first, last in bounds]
