"""The loss mask of a packed file that is being written, kept in a file of its own until the tokens are complete."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
import numpy.typing as npt

from modlib.runtime import durable
from modlib.runtime.errors import DataError


class WaitingMask:
    """One bit per token, the lowest of a byte first, appended in any portions.

    Args:
        path: The file; it stays when it is closed. None: a file without a name, gone when it is closed.
        folder: Where a file without a name is made.
        continued: Take up the file at so many tokens, whatever was written after them; None begins it anew.

    Raises:
        DataError: The file that is taken up is too short.
    """

    def __init__(self, path: Path | None, folder: Path, continued: int | None = None) -> None:
        self._path = path
        self._rest = np.zeros(0, np.bool_)  # of the last byte, which is not complete
        if path is None:
            self._file = cast(BinaryIO, tempfile.TemporaryFile(dir=folder))  # noqa: SIM115
            return
        self._file = open(path, "w+b" if continued is None else "r+b")  # noqa: SIM115  open as long as this
        if continued:
            self._take_up(continued)

    def _take_up(self, num_tokens: int) -> None:
        whole, bits = divmod(num_tokens, 8)
        needed = whole + (bits > 0)
        if self._file.seek(0, os.SEEK_END) < needed:
            raise DataError(f"{self._path} must hold at least {needed} bytes; bytes were lost: start again")
        self._file.seek(whole)
        self._rest = _bits(self._file.read(1))[:bits]
        self._file.seek(whole)  # the byte stays until it is complete: this process may be cut off, too

    def write(self, trained: npt.NDArray[np.bool_]) -> None:
        """Append the bits of some tokens."""
        bits = np.concatenate([self._rest, trained])
        end = len(bits) // 8 * 8
        self._rest = bits[end:].copy()
        self._file.write(np.packbits(bits[:end], bitorder="little").data)

    def checkpoint(self) -> None:
        """Bring what was written to the disk, the last bits as well."""
        assert self._path is not None
        place = self._file.tell()
        self._file.write(self._last())
        self._file.flush()
        durable.fsync_file(self._file.fileno(), self._path)
        self._file.seek(place)  # what follows completes that byte

    def chunks(self, size: int) -> Iterator[bytes]:
        """The bytes of all tokens, in order; nothing is appended afterwards."""
        left = self._file.tell()
        self._file.seek(0)
        while left:
            chunk = self._file.read(min(size, left))
            left -= len(chunk)
            yield chunk
        yield self._last()

    def _last(self) -> bytes:
        return np.packbits(self._rest, bitorder="little").tobytes()

    def close(self) -> None:
        self._file.close()


def _bits(packed: bytes) -> npt.NDArray[np.bool_]:
    return np.unpackbits(np.frombuffer(packed, np.uint8), bitorder="little").astype(np.bool_)
