"""Training windows of whole documents from a packed token file."""

from __future__ import annotations

import bisect
import logging
import os
from array import array
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from modlib.components import component
from modlib.data.document_ids import ids_of_pieces, ids_of_slices
from modlib.data.packed_dataset import bytes_per_token, check_tokenizer, check_vocabulary, open_packed
from modlib.data.packed_file import PackedFile
from modlib.data.windows import Windows, count_targets, padded, separated, window_numbers
from modlib.runtime.errors import ConfigError, DataError

logger = logging.getLogger("modlib")

LongDocuments = Literal["refuse", "truncate", "cut"]
Numbers = npt.NDArray[np.int64]


@component("dataset", "packed_documents")
class PackedDocuments:
    """Windows of seq_len + 1 tokens that hold whole documents: several short ones each, none split, the rest padding.

    A window's first token is never a target, and a document's first token is predicted from the end of the document
    before it, as in PackedDataset: documents in one window see each other. With intra_document_masking they do not:
    attention stays within a document, positions begin anew with each, and its first token is no target, so that
    training on a window is training on each of its documents alone. Each piece of a document that is cut counts as a
    document. The model must take "document_ids", as GPT2 does.

    With packing "in_order", documents keep their order and a window is closed when the next one does not fit: its
    table takes 16 bytes per window, and a window is one slice of the file. "best_fit" puts each document, longest
    first, into the window with the least room that still takes it: less padding, at 24 bytes per document.
    `padding` says what share of the windows' tokens is padding. Tokens that a loss mask leaves out are not trained.

    A document of more than seq_len + 1 tokens is an error ("refuse"), loses its end ("truncate", counted in
    `num_truncated_tokens`), or is the exception to the rule and "cut" into windows that start seq_len tokens apart, so
    that each of its tokens but the first is a target once; its last piece is packed like a document.

    The contents of files up to 64 MiB are verified against their hash on opening.

    Args:
        path: A packed token file, or a corpus that modlib makes itself, such as "stdlib:train".
        seq_len: Targets per window, at least 1.
        long_documents: See above.
        packing: See above.
        intra_document_masking: Whether documents in one window are kept apart, see above.

    Raises:
        ConfigError: seq_len is below 1, or there is no such corpus or file.
        DataError: The file is damaged or has no document, or a document is too long and long_documents is "refuse".

    Source: best fit: Ding et al., Fewer Truncations Improve Language Modeling, ICML 2024, section 3.
    """

    def __init__(
        self,
        *,
        path: str,
        seq_len: int,
        long_documents: LongDocuments = "refuse",
        packing: Literal["in_order", "best_fit"] = "in_order",
        intra_document_masking: bool = False,
    ) -> None:
        if seq_len < 1:
            raise ConfigError(f"seq_len ({seq_len}) must be at least 1; set SEQ_LEN")
        self.name = os.fspath(path)
        self.seq_len = seq_len
        self.long_documents = long_documents
        self.packing = packing
        self.intra_document_masking = intra_document_masking
        self.packed = open_packed(path)
        pieces = _pieces if packing == "best_fit" else _windows
        starts, lengths, self.num_truncated_tokens = pieces(self.packed, seq_len, long_documents)
        if not len(starts):
            raise DataError(f"documents in {self.packed.path} ({self.packed.num_documents}) must have tokens; check it")
        first = np.arange(len(starts) + 1)
        if packing == "best_fit":
            order, first = _best_fit(lengths, seq_len + 1)
            starts, lengths = starts[order], lengths[order]
        self._starts, self._lengths, self._first = starts, lengths, first
        logger.info(
            "%s: %d windows of whole documents (%s), %.2f%% of them is padding",
            self.name, len(self), packing, 100 * self.padding,
        )  # fmt: skip
        if self.num_truncated_tokens:
            logger.warning(
                "%s: %d tokens beyond seq_len + 1 are left out (long_documents = 'truncate')",
                self.name, self.num_truncated_tokens,
            )  # fmt: skip

    def __len__(self) -> int:
        return len(self._first) - 1

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
        pad_id = self.packed.header.end_of_document_id or 0
        windows = padded([self._row(number) for number in wanted.tolist()], self.seq_len + 1, pad_id, wanted)
        if self.packed.has_loss_mask:
            windows = replace(windows, trained=self._trained(wanted))
        return separated(windows, self._document_ids(wanted)) if self.intra_document_masking else windows

    def _document_ids(self, wanted: Numbers) -> npt.NDArray[np.int32]:
        width = self.seq_len + 1
        if self.packing == "in_order":
            return ids_of_slices(self.packed, self._starts[wanted], self._lengths[wanted], width)
        first = self._first[wanted]
        return ids_of_pieces(first, self._first[wanted + 1] - first, self._lengths, width)

    def read_ahead(self, indices: Numbers) -> None:
        """Tell the system that these windows are read next; see `PackedFile.read_ahead`."""
        windows = zip(self._first[indices].tolist(), self._first[indices + 1].tolist(), strict=True)
        pieces = np.concatenate([np.arange(first, last) for first, last in windows])
        self.packed.read_ahead(self._starts[pieces], self._lengths[pieces])

    def _row(self, number: int) -> npt.NDArray[Any]:
        first, last = self._first[number : number + 2].tolist()
        starts, lengths = self._starts[first:last].tolist(), self._lengths[first:last].tolist()
        parts = [self.packed.tokens[start : start + length] for start, length in zip(starts, lengths, strict=True)]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _trained(self, wanted: Numbers) -> npt.NDArray[np.bool_]:
        """What the loss mask says of windows; False at padding."""
        trained = np.zeros((len(wanted), self.seq_len + 1), np.bool_)
        for row, number in zip(trained, wanted.tolist(), strict=True):
            first, last = self._first[number : number + 2].tolist()
            pieces = zip(self._starts[first:last].tolist(), self._lengths[first:last].tolist(), strict=True)
            mask = np.concatenate([self.packed.trained(start, start + length) for start, length in pieces])
            row[: len(mask)] = mask
        return trained

    def __reduce__(self) -> tuple[Any, ...]:  # a loader worker maps the file itself, and makes the same table
        settings = (self.seq_len, self.long_documents, self.packing, self.intra_document_masking)
        return (_reopen, (str(self.packed.path), *settings))

    @property
    def fingerprint(self) -> str:
        """Changes when the tokens or the way they are packed change; the same on every machine."""
        settings = f"seq_len={self.seq_len}/{self.long_documents}/{self.packing}"
        apart = "/intra_document_masking" if self.intra_document_masking else ""
        return f"sha256:{self.packed.sha256}/documents/{settings}{apart}"

    @property
    def padding(self) -> float:
        """Share of the windows' tokens that is padding, 0 to 1."""
        return 1.0 - int(self._lengths.sum()) / (len(self) * (self.seq_len + 1))

    @property
    def bytes_per_token(self) -> float:
        """UTF-8 bytes of source text per token, end-of-document tokens included; 0.0 when the file does not say."""
        return bytes_per_token(self.packed)

    @cached_property
    def num_tokens(self) -> int:
        """Targets in one epoch; padding, and what the loss mask leaves out, are none."""
        if not self.packed.has_loss_mask:
            untrained = self._num_pieces() if self.intra_document_masking else len(self)
            return int(self._lengths.sum()) - untrained
        if self.intra_document_masking:
            return count_targets(self)
        begins = np.zeros_like(self._lengths)
        begins[self._first[:-1]] = 1  # a window's first token is no target
        return self.packed.count_trained(self._starts + begins, self._lengths - begins)

    def _num_pieces(self) -> int:
        """Documents with tokens, each piece of one that is cut by itself."""
        if self.packing == "best_fit":
            return len(self._starts)
        lengths = np.diff(self.packed.document_offsets)
        lengths = lengths[lengths > 0]
        if self.long_documents == "cut":
            return int(np.maximum(-(-(lengths - 1) // self.seq_len), 1).sum())
        return len(lengths)

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
        """Raise DataError when an id in the file is not below the model's vocab_size."""
        check_vocabulary(self.packed, vocab_size)

    def check_tokenizer(self, fingerprint: str) -> None:
        """Raise DataError when another tokenizer made the file; one that names no tokenizer passes."""
        check_tokenizer(self.packed, fingerprint)

    def check_unchanged(self) -> None:
        """See `PackedFile.check_unchanged`."""
        self.packed.check_unchanged()


def _windows(packed: PackedFile, seq_len: int, long_documents: LongDocuments) -> tuple[Numbers, Numbers, int]:
    """Start and length of every window with documents in order, and the number of tokens left out.

    Every window is one slice of the file: a document that is cut fills windows of its own, and its last piece is
    followed by the next documents.
    """
    # Python's bisect over a plain buffer is several times faster than numpy's search for one number.
    offsets: Sequence[int] = memoryview(packed.document_offsets)  # type: ignore[arg-type, assignment]
    starts, lengths = array("q"), array("q")
    count, left_out = packed.num_documents, 0
    document, start, in_window = 0, 0, 0
    while document < count:
        behind = start + seq_len + 1
        until = document + 2 * in_window + 2  # windows hold about as many as the one before: far fewer to look through
        if until > count or offsets[until] <= behind:
            until = count + 1
        following = bisect.bisect_right(offsets, behind, document, until) - 1  # the first document that is left out
        in_window = following - document
        if following > document:
            end = offsets[following]
            document = following
            step = end
        else:
            end = behind
            if long_documents == "refuse":
                raise _too_long(packed, document, seq_len)
            if long_documents == "cut":
                step = behind - 1
            else:
                document += 1
                step = offsets[document]
                left_out += step - behind
        if end > start:
            starts.append(start)
            lengths.append(end - start)
        start = step
    return np.array(starts, np.int64), np.array(lengths, np.int64), left_out


def _pieces(packed: PackedFile, seq_len: int, long_documents: LongDocuments) -> tuple[Numbers, Numbers, int]:
    """Start and length of what best fit packs: documents, and pieces of those that are too long."""
    starts = np.asarray(packed.document_offsets[:-1], np.int64)
    lengths = np.diff(packed.document_offsets).astype(np.int64)
    starts, lengths = starts[lengths > 0], lengths[lengths > 0]
    long = lengths > seq_len + 1
    left_out = 0
    if long.any():
        if long_documents == "refuse":
            document = int(np.flatnonzero(np.diff(packed.document_offsets) > seq_len + 1)[0])
            raise _too_long(packed, document, seq_len)
        if long_documents == "truncate":
            left_out = int((lengths[long] - seq_len - 1).sum())
        else:
            pieces = np.maximum(-(-(lengths - 1) // seq_len), 1)
            number = np.arange(int(pieces.sum())) - np.repeat(np.cumsum(pieces) - pieces, pieces)  # within a document
            starts = np.repeat(starts, pieces) + number * seq_len
            lengths = np.repeat(lengths, pieces) - number * seq_len
        lengths = np.minimum(lengths, seq_len + 1)
    return starts, lengths, left_out


def _best_fit(lengths: Numbers, room: int) -> tuple[Numbers, Numbers]:
    """Pieces in the order of the windows they are put into, and the first piece of each window.

    Windows come in the order of their first pieces, and pieces within a window in their own order.

    Args:
        lengths: Of the pieces, 1 to room.
        room: Tokens per window.
    """
    window_of, count = _fit(lengths, room)
    first_pieces = np.full(count, len(lengths), np.int64)
    np.minimum.at(first_pieces, window_of, np.arange(len(lengths)))
    place = np.empty(count, np.int64)
    place[np.argsort(first_pieces, kind="stable")] = np.arange(count)
    window_of = place[window_of]
    order = np.argsort(window_of, kind="stable")
    return order, np.concatenate([[0], np.cumsum(np.bincount(window_of, minlength=count))])


def _fit(lengths: Numbers, room: int) -> tuple[Numbers, int]:
    """The window of each piece, windows numbered as they are opened, and how many there are.

    Pieces of one length are placed many at a time: a window that takes one is the best for the next, while it fits.
    """
    by_length = np.argsort(-lengths, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(lengths[by_length])) + 1, len(lengths)).tolist()
    window_of = np.empty(len(lengths), np.int64)
    by_room: dict[int, list[int]] = {}
    some = 0  # bit r is set when a window with r tokens of room is open
    count = place = 0
    for end in ends:
        length = int(lengths[by_length[place]])
        while place < end:
            fitting = some >> length
            left = length + (fitting & -fitting).bit_length() - 1 if fitting else room
            each = left // length
            wanted = -(-(end - place) // each)
            if fitting:
                open_windows = by_room[left]
                windows = open_windows[-wanted:][::-1]
                del open_windows[-wanted:]
                if not open_windows:
                    some ^= 1 << left
            else:
                windows = list(range(count, count + wanted))
                count += wanted
            taken = min(len(windows) * each, end - place)
            window_of[by_length[place : place + taken]] = np.repeat(windows, each)[:taken]
            place += taken
            in_last = taken - (len(windows) - 1) * each
            for filled, rest in ((windows[:-1], left - each * length), (windows[-1:], left - in_last * length)):
                if filled and rest:
                    by_room.setdefault(rest, []).extend(filled)
                    some |= 1 << rest
    return window_of, count


def _too_long(packed: PackedFile, document: int, seq_len: int) -> DataError:
    start, end = packed.document_offsets[document : document + 2].tolist()
    return DataError(
        f"tokens of document {document} of {packed.path} ({end - start}) must be at most seq_len + 1 ({seq_len + 1}); "
        "set PackedDocuments.long_documents = 'cut' or 'truncate', or a longer SEQ_LEN"
    )


def _reopen(
    path: str, seq_len: int, long_documents: LongDocuments, packing: Any, intra_document_masking: bool
) -> PackedDocuments:
    return PackedDocuments(
        path=path,
        seq_len=seq_len,
        long_documents=long_documents,
        packing=packing,
        intra_document_masking=intra_document_masking,
    )
