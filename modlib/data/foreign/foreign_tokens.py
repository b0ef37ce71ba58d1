"""Token files of other libraries, as this package reads and writes them."""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from modlib.data.packed.outputs import exists
from modlib.data.packed.pieces import document_batches
from modlib.runtime import durable
from modlib.runtime.errors import DataError, unreadable

Ids = npt.NDArray[Any]
Numbers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class ForeignTokens:
    """The documents of a foreign file.

    Args:
        files: What was read.
        num_tokens: Of all documents; 0 where nobody knows before reading.
        batches: Ids back to back and the length of each document, in order; may be called again.
    """

    files: Sequence[Path]
    num_tokens: int
    batches: Callable[[], Iterator[tuple[Ids, Numbers]]]


def of_array(files: Sequence[Path], tokens: Ids, offsets: Numbers) -> ForeignTokens:
    """Documents that lie back to back in one (memory-mapped) array."""

    def batches() -> Iterator[tuple[Ids, Numbers]]:
        for first, behind in document_batches(offsets):
            yield tokens[offsets[first] : offsets[behind]], np.diff(offsets[first : behind + 1])

    return ForeignTokens(files, int(offsets[-1]), batches)


def mapped(path: Path, dtype: str, offset: int = 0, count: int | None = None) -> Ids:
    """The numbers of a file, memory-mapped; none of an empty file.

    Raises:
        DataError: It cannot be read.
    """
    try:
        size = (path.stat().st_size - offset) // np.dtype(dtype).itemsize if count is None else count
        if size <= 0:
            return np.zeros(0, dtype)
        return np.memmap(path, dtype, "r", offset, (size,))
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path} cannot be read: {getattr(error, 'strerror', None) or error}; check the path"
        ) from error


def read_bytes(path: Path, offset: int = 0, count: int = -1) -> bytes:
    """Some bytes of a file.

    Raises:
        DataError: It cannot be read.
    """
    try:
        with open(path, "rb") as file:
            file.seek(offset)
            return file.read(count)
    except OSError as error:
        raise unreadable(f"{path} cannot be read: {error.strerror}; check the path", error) from error


@contextmanager
def written_aside(path: Path, overwrite: bool) -> Iterator[BinaryIO]:
    """A file to write, which gets its name when it is whole and on disk; an exception removes it.

    Raises:
        DataError: The file exists or cannot be written.
    """
    if path.exists() and not overwrite:
        raise exists(path)
    aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with os.fdopen(durable.create_file(aside), "wb", buffering=1 << 20) as file:
            yield file
            file.flush()
            durable.fsync_file(file.fileno(), aside)
        durable.rename(aside, path)
        durable.fsync_directory(path.parent)
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error.strerror or error}; free space or choose another") from error
    finally:
        aside.unlink(missing_ok=True)


def fingerprint(path: Path) -> dict[str, Any]:
    """A file by its path, size and SHA-256."""
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return {"path": str(path), "bytes": file.tell(), "sha256": digest}
