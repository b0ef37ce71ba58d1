"""The table of a packed file's windows of whole documents: made once, kept in the cache, mapped by every reader.

A kept table is a file of 4,096 bytes of header (a hash, a blank, JSON, blanks) and the arrays, little-endian: the first
piece of each window (int64; not there when every window is one piece), then the pieces (12 bytes each: ROW).

It is found by what it follows from: the document offsets and the settings. (Not by the hash in the packed file's
header, which nobody compares when a large file is opened: damaged offsets must not leave their table to sound ones.)
Opening compares the header with its hash and with what is asked for, and the size; a file that does not fit is made
again. The arrays are not read then: whoever takes windows from them looks at each row (`WindowTable.pieces`), so that
no damage reaches beyond the packed file or makes a window too long: that is an error. Damage within these bounds, which
would be whole numbers changed in a file that nobody writes to, is not seen.
"""

from __future__ import annotations

import hashlib
import json
import logging
import mmap
import os
import secrets
from functools import cache
from pathlib import Path
from typing import Any, TypedDict

import numpy as np

from modlib.data.cache import CacheError, kept, remembered_hash
from modlib.data.datasets.document_windows import (
    ROW,
    LongDocuments,
    Packing,
    WindowTable,
    make_table,
)
from modlib.data.packed.file import PackedFile
from modlib.runtime import durable
from modlib.runtime.json_files import parse_json

logger = logging.getLogger("modlib")

_VERSION = 1  # raise when the same offsets and settings would give another table; part of every key
_KEPT_FROM = 1 << 16  # documents: tables of fewer are made in milliseconds, as quickly as one is found
_HEADER_BYTES = 4096
_KIND = "windows"
_ARRAYS: dict[str, np.dtype[Any]] = {"first": np.dtype("<i8"), "rows": ROW}
_NUMBERS = ("room", "end", "num_tokens", "num_documents", "num_truncated_tokens")


class TableHeader(TypedDict):
    """What the header of a kept table says beside what was asked."""

    sizes: dict[str, int]
    numbers: dict[str, int]


def window_table(packed: PackedFile, seq_len: int, long_documents: LongDocuments, packing: Packing) -> WindowTable:
    """The windows of a packed file; of a large one, from the cache when they were made before.

    Any number of processes may call this at once: one makes the table, the others wait. Where none can be kept, it is
    made in memory.

    Raises:
        DataError: See `make_table`.
    """

    @cache
    def made() -> WindowTable:
        return make_table(packed, seq_len, long_documents, packing)

    if packed.num_documents < _KEPT_FROM:
        return made()
    settings = {"seq_len": seq_len, "long_documents": long_documents, "packing": packing}
    try:
        documents = remembered_hash(_KIND, packed.path, packed.status, packed.documents_sha256)
        asked = {"version": _VERSION, "documents_sha256": documents, **settings}
        name = f"{hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:32]}.windows"

        def make(path: Path) -> WindowTable:
            logger.info("%s: looking through %d documents once, for %s", packed.path, packed.num_documents, path)
            _write(path, asked, made())
            return _map(path, asked)

        return kept(_KIND, name, lambda path: _read(path, asked), make, f"looks through {packed.path}")
    except (CacheError, OSError) as error:
        logger.warning(
            "the table of windows of %s cannot be kept (%s); every process makes its own: free space, or set "
            "MODLIB_CACHE to a writable folder", packed.path, error,
        )  # fmt: skip
        return made()


def _read(path: Path, asked: dict[str, Any]) -> WindowTable | None:
    """What `_write` wrote; None when it is not there or does not fit (it is then made again)."""
    try:
        return _map(path, asked)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        logger.warning("table %s is damaged and is made again: %s", path, error)
        return None


def _write(path: Path, asked: dict[str, Any], table: WindowTable) -> None:
    arrays = {name: getattr(table, name) for name in _ARRAYS if getattr(table, name) is not None}
    numbers = {name: getattr(table, name) for name in _NUMBERS}
    sizes = {name: len(array) for name, array in arrays.items()}
    header = json.dumps({**asked, "sizes": sizes, "numbers": numbers})
    for left in path.parent.glob(f".{path.name}.*.tmp"):  # by a process that was killed: the lock is held
        left.unlink(missing_ok=True)
    aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        descriptor = durable.create_file(aside)
        try:
            text = f"{hashlib.sha256(header.encode()).hexdigest()} {header}"
            durable.write_all(descriptor, memoryview(text.encode().ljust(_HEADER_BYTES)), 0, aside)
            offset = _HEADER_BYTES
            for array in arrays.values():
                durable.write_all(descriptor, array.view(np.uint8).data, offset, aside)
                offset += array.nbytes
            durable.fsync_file(descriptor, aside)
        finally:
            os.close(descriptor)
        durable.rename(aside, path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    durable.fsync_directory(path.parent)


def _map(path: Path, asked: dict[str, Any]) -> WindowTable:
    """Map a table. Raises ValueError when the file is not the table that is asked for, whole."""
    with open(path, "rb") as file:
        digest, _, header = file.read(_HEADER_BYTES).rstrip().partition(b" ")
        if hashlib.sha256(header).hexdigest().encode() != digest:
            raise ValueError("its header does not fit its hash")
        found: dict[str, Any] = dict(parse_json(header, TableHeader, place="its header", finite=True))
        sizes, numbers = found.pop("sizes"), found.pop("numbers")
        if found != asked:
            raise ValueError(f"it is of {found}")
        promised = _HEADER_BYTES + sum(_ARRAYS[name].itemsize * size for name, size in sizes.items())
        size = os.fstat(file.fileno()).st_size
        if size != promised:
            raise ValueError(f"it has {size} bytes, not {promised}")
        content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    arrays: dict[str, Any] = {"first": None}
    offset = _HEADER_BYTES
    for name, size in sizes.items():
        arrays[name] = np.frombuffer(content, _ARRAYS[name], size, offset)
        offset += arrays[name].nbytes
    return WindowTable(**arrays, **numbers, path=path)
