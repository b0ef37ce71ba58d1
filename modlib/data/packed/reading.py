"""The bytes of an open file from first to last, without mapping them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from modlib.runtime.errors import DataError

_PIECE_BYTES = 1 << 20  # stays in the processor's cache


def pieces(descriptor: int, path: Path, start: int, end: int) -> Iterator[memoryview]:
    """Bytes start..end-1 in order, a MiB at a time; each piece is overwritten by the next.

    Args:
        descriptor: Of the open file.
        path: For the messages.
        start: The first byte.
        end: Behind the last.

    Raises:
        DataError: They cannot be read, or the file ends before.
    """
    buffer = memoryview(bytearray(_PIECE_BYTES))
    while start < end:
        piece = buffer[: min(_PIECE_BYTES, end - start)]
        filled = 0
        while filled < len(piece):
            try:
                count = os.preadv(descriptor, [piece[filled:]], start + filled)
            except OSError as error:
                raise DataError(f"{path} cannot be read: {error.strerror}; copy it again") from error
            if not count:
                raise DataError(f"{path} ends at byte {start + filled}, not {end}; it was cut off: copy it again")
            filled += count
        yield piece
        start += len(piece)
