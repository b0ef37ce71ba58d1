"""Which stretches of a packed file make up each window of whole documents."""

from __future__ import annotations

import bisect
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from modlib.data.packed.file import PackedFile
from modlib.runtime.errors import DataError

LongDocuments = Literal["refuse", "truncate", "cut"]
Packing = Literal["in_order", "best_fit"]
Numbers = npt.NDArray[np.int64]
Lengths = npt.NDArray[np.int32]

ROW = np.dtype([("start", "<i8"), ("length", "<i4")])
MAX_SEQ_LEN = (1 << 31) - 2  # lengths are kept in 32 bits
_CHUNK = 1 << 20


@dataclass(frozen=True)
class WindowTable:
    """Windows as pieces of a packed file. Memory: 12 bytes per piece, and 8 per window where `first` is needed.

    Args:
        rows: Of type ROW, one for each piece: its first token, and how many it has.
        first: The first piece of each window, and the number of pieces; None when every window is one piece.
        room: Tokens that a window holds.
        end: Tokens of the file.
        num_tokens: Sum of the lengths.
        num_documents: Documents with tokens, each piece of one that is cut by itself.
        num_truncated_tokens: Left out because their documents are too long.
        path: The file that the table is mapped from, if it is.
    """

    rows: npt.NDArray[np.void]
    first: Numbers | None
    room: int
    end: int
    num_tokens: int
    num_documents: int
    num_truncated_tokens: int
    path: Path | None = None

    def __len__(self) -> int:
        return len(self.rows) if self.first is None else len(self.first) - 1

    def pieces(self, windows: Numbers) -> tuple[Numbers, Numbers, Numbers]:
        """Start and length of all pieces of some windows, one window after the other, and how many each window has.

        Raises:
            DataError: A row is not what any table has: the file of the table is damaged.
        """
        if self.first is None:
            rows, counts = self.rows[windows], np.ones(len(windows), np.int64)
            places = np.arange(len(windows))
        else:
            begins = self.first[windows]
            counts = self.first[windows + 1] - begins
            in_file = (begins >= 0) & (counts >= 1) & (counts <= self.room) & (begins <= len(self.rows) - counts)
            self._check(windows, in_file)
            places = np.cumsum(counts) - counts  # of each window's first piece in what is returned
            rows = self.rows[np.arange(int(counts.sum())) + np.repeat(begins - places, counts)]
        starts, lengths = rows["start"].astype(np.int64), rows["length"].astype(np.int64)
        sound = (starts >= 0) & (lengths >= 1) & (lengths <= self.room) & (starts <= self.end - lengths)
        filled = np.add.reduceat(np.where(sound, lengths, self.room + 1), places)
        self._check(windows, filled <= self.room)
        return starts, lengths, counts

    def _check(self, windows: Numbers, sound: npt.NDArray[np.bool_]) -> None:
        if not sound.all():
            raise DataError(
                f"window {windows[~sound][0]} in the table {self.path} must be {self.room} tokens or less within the "
                f"{self.end} of its packed file; the table is damaged: delete it, it is made again"
            )


def make_table(packed: PackedFile, seq_len: int, long_documents: LongDocuments, packing: Packing) -> WindowTable:
    """The windows of a packed file, from its document offsets alone; see `modlib.data.datasets.packed_documents`.

    Raises:
        DataError: The offsets are damaged, no document has a token, or one is too long and is to be refused.
    """
    packed.check_order()
    first = None
    if packing == "best_fit":
        starts, lengths, left_out = _pieces(packed, seq_len, long_documents)
        order, first = _best_fit(lengths, seq_len + 1)
    else:
        starts, lengths, left_out = _windows(packed, seq_len, long_documents)
    if not len(starts):
        raise DataError(f"documents in {packed.path} ({packed.num_documents}) must have tokens; check it")
    rows = np.empty(len(starts), ROW)
    rows["start"] = starts if first is None else starts[order]
    rows["length"] = lengths if first is None else lengths[order]
    return WindowTable(
        rows,
        first,
        room=seq_len + 1,
        end=packed.num_tokens,
        num_tokens=int(lengths.sum(dtype=np.int64)),
        num_documents=len(starts) if first is not None else _num_documents(packed, seq_len, long_documents),
        num_truncated_tokens=left_out,
    )


def _num_documents(packed: PackedFile, seq_len: int, long_documents: LongDocuments) -> int:
    """Documents with tokens, each piece of one that is cut by itself."""
    total = 0
    for start in range(0, packed.num_documents, _CHUNK):
        lengths = np.diff(packed.document_offsets[start : start + _CHUNK + 1])
        total += int(np.count_nonzero(lengths))
        if long_documents == "cut":
            long = lengths[lengths > seq_len + 1]
            total += int((_num_pieces(long, seq_len) - 1).sum())
    return total


def _num_pieces(lengths: Numbers, seq_len: int) -> Numbers:
    """Into how many pieces documents that are too long are cut."""
    return -(-(lengths - 1) // seq_len)


def _windows(packed: PackedFile, seq_len: int, long_documents: LongDocuments) -> tuple[Numbers, Lengths, int]:
    """Start and length of every window with documents in order, and the number of tokens left out.

    Every window is one slice of the file: a document that is cut fills windows of its own, and its last piece is
    followed by the next documents.
    """
    # Python's bisect over a plain buffer is several times faster than numpy's search for one number.
    offsets: Sequence[int] = memoryview(packed.document_offsets)  # type: ignore[arg-type, assignment]
    starts, lengths = array("q"), array("i")
    count, left_out, room = packed.num_documents, 0, seq_len + 1
    document, start, in_window = 0, 0, 0
    look, add_start, add_length = bisect.bisect_right, starts.append, lengths.append
    while document < count:
        behind = start + room
        until = document + 2 * in_window + 2  # windows hold about as many as the one before: far fewer to look through
        if until > count or offsets[until] <= behind:
            until = count + 1
        following = look(offsets, behind, document, until) - 1  # the first document that is left out
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
            add_start(start)
            add_length(end - start)
        start = step
    return np.frombuffer(starts, np.int64), np.frombuffer(lengths, np.int32), left_out


def _pieces(packed: PackedFile, seq_len: int, long_documents: LongDocuments) -> tuple[Numbers, Lengths, int]:
    """Start and length of what best fit packs: documents, and pieces of those that are too long."""
    starts: Numbers = packed.document_offsets[:-1]
    lengths = np.diff(packed.document_offsets)
    if len(lengths) and not lengths.min():
        starts, lengths = starts[lengths > 0], lengths[lengths > 0]
    left_out = 0
    if lengths.max(initial=0) > seq_len + 1:
        if long_documents == "refuse":
            document = int(np.flatnonzero(np.diff(packed.document_offsets) > seq_len + 1)[0])
            raise _too_long(packed, document, seq_len)
        if long_documents == "truncate":
            left_out = int((lengths[lengths > seq_len + 1] - seq_len - 1).sum())
        else:
            long = lengths > seq_len + 1
            pieces = np.ones_like(lengths)
            pieces[long] = _num_pieces(lengths[long], seq_len)
            number = np.arange(int(pieces.sum())) - np.repeat(np.cumsum(pieces) - pieces, pieces)  # within a document
            number *= seq_len
            starts = np.repeat(starts, pieces) + number
            lengths = np.repeat(lengths, pieces) - number
    return starts, np.minimum(lengths, seq_len + 1).astype(np.int32), left_out


def _best_fit(lengths: Lengths, room: int) -> tuple[npt.NDArray[np.integer[Any]], Numbers]:
    """Pieces in the order of the windows they are put into, and the first piece of each window.

    Windows come in the order of their first pieces, and pieces within a window in their own order.

    Args:
        lengths: Of the pieces, 1 to room.
        room: Tokens per window.
    """
    window_of, count = _fit(lengths, room)
    first_pieces = np.empty(count, window_of.dtype)
    first_pieces[window_of[::-1]] = np.arange(len(lengths), dtype=window_of.dtype)[::-1]  # the last one written stays
    place = np.empty_like(first_pieces)
    place[np.argsort(first_pieces)] = np.arange(count, dtype=place.dtype)
    window_of = place[window_of]
    return _sorted(window_of, count), np.concatenate([[0], np.cumsum(np.bincount(window_of, minlength=count))])


def _fit(lengths: Lengths, room: int) -> tuple[npt.NDArray[np.integer[Any]], int]:
    """The window of each piece, windows numbered as they are opened, and how many there are.

    Pieces of one length are placed many at a time: a window that takes one is the best for the next, while it fits.
    """
    by_length = _sorted(room - lengths, room)
    counts = np.bincount(lengths)[::-1]
    ends = np.cumsum(counts)[counts > 0].tolist()
    window_of = np.empty_like(by_length)
    by_room: dict[int, array[int]] = {}
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
                windows = array("q", range(count, count + wanted))
                count += wanted
            taken = min(len(windows) * each, end - place)
            window_of[by_length[place : place + taken]] = np.repeat(windows, each)[:taken]
            place += taken
            in_last = taken - (len(windows) - 1) * each
            for filled, rest in ((windows[:-1], left - each * length), (windows[-1:], left - in_last * length)):
                if filled and rest:
                    by_room.setdefault(rest, array("q")).extend(filled)
                    some |= 1 << rest
    return window_of, count


def _sorted(keys: npt.NDArray[np.integer[Any]], limit: int) -> npt.NDArray[np.integer[Any]]:
    """The order that sorts keys of 0 to limit; equal ones stay in order. Of 32 bits where they suffice.

    numpy has a radix sort for keys of 16 bits, several times faster than its others: one pass of it per 16 bits.
    """
    dtype = np.int32 if len(keys) < 1 << 31 else np.int64
    order: npt.NDArray[np.integer[Any]] = np.argsort(keys.astype(np.uint16), kind="stable").astype(dtype)
    for shift in range(16, limit.bit_length(), 16):
        order = order[np.argsort((keys >> shift).astype(np.uint16)[order], kind="stable")]
    return order


def _too_long(packed: PackedFile, document: int, seq_len: int) -> DataError:
    start, end = packed.document_offsets[document : document + 2].tolist()
    return DataError(
        f"tokens of document {document} of {packed.path} ({end - start}) must be at most seq_len + 1 ({seq_len + 1}); "
        "set PackedDocuments.long_documents = 'cut' or 'truncate', or a longer SEQ_LEN"
    )
