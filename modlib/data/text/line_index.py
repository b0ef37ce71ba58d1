"""Where the lines of a JSONL file lie: found at the speed of the disk, kept in a file of plain numbers.

The file, little-endian: 8 bytes of magic, uint32 version, uint32 zero, then uint64 of: bytes of the JSONL file, lines
of any kind, lines in the index; the SHA-256 of everything after this hash; then, for each line that is not blank, its
first byte as uint64; then the bytes of each, its line end left out, as uint64.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from modlib.data.packed.header import MAGIC as PACKED_MAGIC
from modlib.data.packed.outputs import exists, require_not_read
from modlib.runtime import durable
from modlib.runtime.errors import DataError, unreadable

MAGIC = b"\x93MODIX\r\n"
VERSION = 1
_HEAD = struct.Struct("<8sIIQQQ32s")
_CHUNK_BYTES = 1 << 20  # stays in the processor's cache
_BLANK = np.frombuffer(b" \t\r\v\f", np.uint8)
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_REMEDY = "make the index again"

Offsets = npt.NDArray[np.int64]


class _NotLines(NamedTuple):
    name: str
    endings: tuple[str, ...]
    magics: tuple[bytes, ...]
    remedy: str


_NOT_LINES = (
    _NotLines("compressed by gzip", (".gz",), (b"\x1f\x8b",), "unpack it with gunzip, and index that"),
    _NotLines("compressed by zstd", (".zst",), (b"\x28\xb5\x2f\xfd",), "unpack it with unzstd, and index that"),
    _NotLines("a Parquet file", (".parquet",), (b"PAR1",), "modlib data pack reads it as it is"),
    _NotLines("a packed token file", (), (PACKED_MAGIC,), "it has an index of its own: modlib data inspect shows it"),
    _NotLines("an index of lines", (), (MAGIC,), "name the file that it was made of"),
)


def find_lines(
    contents: mmap.mmap | bytes, progress: Callable[[int], None] | None = None
) -> tuple[Offsets, Offsets, Offsets]:
    """(number from 1, first byte, bytes) of every line with something in it.

    Lines end with LF; blanks at the end of a line, the CR of CRLF among them, are no part of it, nor is a byte-order
    mark before the first. The last line may have no line end.

    Args:
        contents: The file.
        progress: Called with the bytes that were searched.
    """
    size = len(contents)
    first = len(_BYTE_ORDER_MARK) if contents[: len(_BYTE_ORDER_MARK)] == _BYTE_ORDER_MARK else 0
    found = []
    view = np.frombuffer(contents, np.uint8)
    for start in range(0, size, _CHUNK_BYTES):
        found.append(np.flatnonzero(view[start : start + _CHUNK_BYTES] == ord("\n")) + start)
        if progress is not None and start % (_CHUNK_BYTES << 6) == 0:
            progress(start)
    ends = np.concatenate([*found, np.zeros(0, np.int64)])
    if size and (not len(ends) or ends[-1] != size - 1):
        ends = np.append(ends, size)
    starts = np.empty_like(ends)
    starts[:1], starts[1:] = first, ends[:-1] + 1
    ends = np.maximum(ends, starts)
    candidates = np.arange(len(ends))
    while len(candidates):  # seldom more than once
        candidates = candidates[ends[candidates] > starts[candidates]]
        candidates = candidates[np.isin(view[ends[candidates] - 1], _BLANK)]
        ends[candidates] -= 1
    kept = np.flatnonzero(ends > starts)
    return kept + 1, starts[kept], (ends - starts)[kept]


def write_index(
    path: str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    *,
    known: npt.NDArray[np.int64] | None = None,
    overwrite: bool = False,
    progress: Callable[[int], None] | None = None,
) -> LineIndex:
    """Find the lines of a file and write the index; it is there whole, or not at all.

    Args:
        path: The JSONL file.
        out: The index; None puts it beside the file, as `data.jsonl.index`.
        known: First byte and length of each line, (n, 2), where somebody knows them, such as another library's index
            of the file; each must be a whole line. None finds them.
        overwrite: Whether an existing index is replaced.
        progress: Called now and then with the bytes that were searched.

    Raises:
        ConfigError: The index would replace the file.
        DataError: The file cannot be read, what is known is not so, or the index exists or cannot be written.
    """
    path = Path(path)
    out = index_beside(path) if out is None else Path(out)
    _require_lines(path)
    require_not_read([out], [path])
    if out.exists() and not overwrite:
        raise exists(out)
    contents = _mapped(path)
    numbers, starts, lengths = find_lines(contents, progress)
    if known is not None:
        numbers, starts, lengths = _chosen(known, numbers, starts, lengths, path)
    lines = int(numbers.max()) if len(numbers) else 0
    body = np.concatenate([starts, lengths]).astype("<u8").tobytes()
    counts = struct.pack("<QQQ", len(contents), lines, len(starts))
    head = _HEAD.pack(MAGIC, VERSION, 0, len(contents), lines, len(starts), hashlib.sha256(counts + body).digest())
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        durable.atomic_write_bytes(out, head + body)
    except OSError as error:
        raise DataError(f"{out} cannot be written: {error.strerror or error}; choose another folder") from error
    return LineIndex(path, out)


def _require_lines(path: Path) -> None:
    """Raise DataError where lines are looked for in vain: in a compressed file, or one that is not text."""
    try:
        with open(path, "rb") as file:
            start = file.read(len(MAGIC))
    except OSError as error:
        raise unreadable(f"{path} cannot be read: {error.strerror}; check the path", error) from error
    name = path.name.lower()
    found = next((what for what in _NOT_LINES if name.endswith(what.endings) or start.startswith(what.magics)), None)
    if found is not None:
        raise DataError(f"{path} must hold lines of JSON as plain text; it is {found.name}: {found.remedy}")


def _chosen(
    known: npt.NDArray[np.int64],
    numbers: npt.NDArray[np.int64],
    starts: npt.NDArray[np.int64],
    lengths: npt.NDArray[np.int64],
    path: Path,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Of all lines those that are known, in their order."""
    place = np.minimum(np.searchsorted(starts, known[:, 0]), max(len(starts) - 1, 0))
    if len(starts):
        wrong = np.flatnonzero((starts[place] != known[:, 0]) | (known[:, 1] < lengths[place]))
        ends = starts[place] + known[:, 1]
        following = np.append(starts, np.iinfo(np.int64).max)[place + 1]
        wrong = np.union1d(wrong, np.flatnonzero(ends > following))
    else:
        wrong = np.arange(len(known))
    if wrong.size:
        number = int(wrong[0])
        first, length = known[number].tolist()
        raise DataError(
            f"line {number} of the index ({length} bytes from byte {first} on) must be a line of {path}; the file is "
            "not the one that the index was made of: make the index anew, without --from"
        )
    return numbers[place], starts[place], lengths[place]


def index_beside(path: Path) -> Path:
    """Where the index of a file is kept: `data.jsonl` -> `data.jsonl.index`."""
    return path.with_name(f"{path.name}.index")


class LineIndex:
    """The lines of a JSONL file by number, each read when it is asked for.

    Args:
        path: The JSONL file.
        index: Its index; None takes the one beside it.

    Raises:
        DataError: A file is missing, the index is damaged, or the JSONL file has another size than it had.
    """

    def __init__(self, path: str | os.PathLike[str], index: str | os.PathLike[str] | None = None) -> None:
        self.path = Path(path)
        self.index_path = index_beside(self.path) if index is None else Path(index)
        raw = _mapped(self.index_path)
        if raw[: len(MAGIC)] != MAGIC:
            raise DataError(f"{self.index_path} must be an index of lines; make it with modlib data index")
        if len(raw) < _HEAD.size:
            raise DataError(f"{self.index_path} is truncated; {_REMEDY}")
        _, version, _, size, self.num_lines, count, digest = _HEAD.unpack_from(raw)
        if version != VERSION:
            raise DataError(f"version of {self.index_path} ({version}) must be {VERSION}; {_REMEDY}")
        if len(raw) != _HEAD.size + 16 * count:
            raise DataError(
                f"size of {self.index_path} ({len(raw)} bytes) must be {_HEAD.size + 16 * count} bytes for {count} "
                f"lines; {_REMEDY}"
            )
        self._digest = digest
        self._raw = raw
        self._contents = _mapped(self.path)
        if len(self._contents) != size:
            raise DataError(
                f"size of {self.path} ({len(self._contents)} bytes) must be the {size} bytes it had when "
                f"{self.index_path} was made; {_REMEDY}"
            )
        both = np.frombuffer(raw, "<i8", 2 * count, _HEAD.size)
        self.starts: Offsets = both[:count]
        self.lengths: Offsets = both[count:]

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, number: int) -> bytes:
        """One line, from 0, blank ones not counted; without its line end.

        Raises:
            IndexError: There is no such line.
        """
        start, length = int(self.starts[number]), int(self.lengths[number])
        return self._contents[start : start + length]

    def __iter__(self) -> Iterator[bytes]:
        return (self[number] for number in range(len(self)))

    def __reduce__(self) -> tuple[object, ...]:
        return (LineIndex, (self.path, self.index_path))

    def verify(self) -> None:
        """Compare the index with its hash.

        Raises:
            DataError: It was changed or damaged.
        """
        skipped = _HEAD.size - 32
        digest = hashlib.sha256(self._raw[16:skipped])
        digest.update(self._raw[_HEAD.size :])
        if digest.digest() != self._digest:
            raise DataError(f"{self.index_path} is damaged: its SHA-256 does not match; {_REMEDY}")


def _mapped(path: Path) -> mmap.mmap | bytes:
    try:
        with open(path, "rb") as file:
            if os.fstat(file.fileno()).st_size == 0:
                return b""
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise unreadable(f"{path} cannot be read: {error.strerror}; check the path", error) from error
