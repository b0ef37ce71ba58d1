"""Files of documents, found by name, folder or pattern, and read in blocks."""

from __future__ import annotations

import glob
import gzip
import os
import stat
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

from modlib.data.text.fields import Field, row_of
from modlib.data.text.saved_dataset import arrow_files, is_saved_dataset
from modlib.data.text.tables import arrow_rows, parquet_rows
from modlib.runtime.errors import ConfigError, DataError, unreadable

BLOCK_BYTES = 1 << 19
"""Text that is read, and tokenized by one process, at a time; a longer line is a block of its own."""

MOST_DOCUMENT_BYTES = 1 << 28
"""A longer line, when unpacked, or text file is refused: a document is held in memory whole, several times."""

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_ZSTD_BYTES = 1024  # unpacked at once: they become 32 MiB at most
_FILES = 256  # text files in one block
_PEEK_BYTES = 1 << 16  # of a .json, to see whether it holds lines
_MOST_WINDOW_BYTES = 1 << 31  # of zstd --long=31, the longest there is

Kind = Literal["jsonl", "txt", "parquet", "arrow"]
SUFFIXES: dict[str, tuple[Kind, str]] = {
    ".jsonl": ("jsonl", ""),
    ".ndjson": ("jsonl", ""),
    ".jsonl.gz": ("jsonl", "gz"),
    ".jsonl.zst": ("jsonl", "zst"),
    ".json": ("jsonl", ""),
    ".json.gz": ("jsonl", "gz"),
    ".json.zst": ("jsonl", "zst"),
    ".txt": ("txt", ""),
    ".parquet": ("parquet", ""),
    ".arrow": ("arrow", ""),
}
"""What a file's name ends in -> what is in it, and how it is compressed."""
_NAMED_ONLY = (".json", ".arrow")
"""Endings of files that are no documents in many folders: settings, and caches of the datasets library."""


@dataclass(frozen=True)
class Source:
    """One file of documents."""

    path: Path
    kind: Kind
    compression: str
    num_bytes: int
    mtime_ns: int


@dataclass(frozen=True)
class Place:
    """Where reading goes on: the source, how far in it (bytes when unpacked; rows of Parquet), the next row's number.

    Rows are counted from 1: lines of a JSONL file, rows of a Parquet file; a text file is one row.
    """

    source: int = 0
    position: int = 0
    row: int = 1


@dataclass(frozen=True)
class Block:
    """Some rows that follow each other, as they were read.

    Args:
        start: Where it begins.
        end: Where the next block begins.
        data: Whole lines of a JSONL file; or of each text file, from the start on, its bytes; or rows.
        bytes_read: Bytes of all files that reading has come past, for the progress.
    """

    start: Place
    end: Place
    data: bytes | list[bytes] | list[Any]
    bytes_read: int


def find_sources(inputs: Sequence[str | os.PathLike[str]]) -> list[Source]:
    """The files that are named, in the order in which they are packed.

    Inputs keep their order. A folder stands for the files below it whose name ends in one of SUFFIXES, hidden ones left
    out, a pattern (`*`, `?`, `[ab]`, `**` for folders at any depth) for the files it matches; both ordered by path,
    folder by folder, character by character. Of a folder, .json and .arrow files are left out: they are named, or
    matched by a pattern. A folder that `save_to_disk` of the datasets library wrote stands for its rows.

    Raises:
        ConfigError: An input is not there, has another ending, stands for no file, or a file is named twice.
        DataError: An input cannot be read, or is too large for one document.
    """
    if not inputs:
        raise ConfigError("inputs (none) must be at least one file, folder or pattern; name what to pack")
    found: dict[str, Source] = {}
    for name in inputs:
        for path in _paths(os.fspath(name)):
            source = _source(path)
            if (same := str(path.resolve())) in found:
                raise ConfigError(f"input ({path}) must be named once; its documents would be in the output twice")
            found[same] = source
    return list(found.values())


def _paths(name: str) -> list[Path]:
    path = Path(name)
    if path.is_dir() and is_saved_dataset(path):
        return arrow_files(path)
    if path.is_dir():
        inside = [Path(folder) / file for folder, _, files in os.walk(path) for file in files]
        seen = [one for one in inside if ending_of(one) and not _hidden(one.relative_to(path))]
        paths = [one for one in seen if ending_of(one) not in _NAMED_ONLY]
        if not paths:
            named = next((one for one in seen), None)
            hint = f"; name its {named.suffix} files by a pattern: '{path}/**/*{named.suffix}'" if named else ""
            raise ConfigError(
                f"input ({name}) must hold files of documents; it has none that ends in {_FOLDER_ENDINGS}{hint}"
            )
    elif not path.exists() and glob.has_magic(name):
        paths = [one for one in map(Path, glob.glob(name, recursive=True)) if one.is_file()]
        if not paths:
            raise ConfigError(f"input ({name}) must match a file; it matches none in {Path.cwd()}")
    else:
        return [path]
    return sorted(paths, key=lambda one: one.parts)


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def ending_of(path: Path) -> str | None:
    """Which of SUFFIXES a file's name ends in; None when it is no kind of input."""
    return max((end for end in SUFFIXES if path.name.lower().endswith(end)), key=len, default=None)


_ENDINGS = ", ".join(SUFFIXES)
_FOLDER_ENDINGS = ", ".join(ending for ending in SUFFIXES if ending not in _NAMED_ONLY)


def _source(path: Path) -> Source:
    try:
        status = path.stat()
    except OSError as error:
        raise unreadable(f"input ({path}) cannot be read: {error.strerror}; check the path", error) from error
    ending = ending_of(path)
    if ending is None:
        raise ConfigError(f"input ({path}) must end in {_ENDINGS}; rename it, or convert it first")
    kind, compression = SUFFIXES[ending]
    if not stat.S_ISREG(status.st_mode):
        raise ConfigError(f"input ({path}) must be a regular file; copy what it gives into one")
    if kind == "txt" and status.st_size > MOST_DOCUMENT_BYTES:
        raise DataError(
            f"input ({path}, {status.st_size} bytes) is one document, which must have at most {MOST_DOCUMENT_BYTES} "
            "bytes (MOST_DOCUMENT_BYTES); split it into several files, or into lines of a .jsonl"
        )
    if ending.startswith(".json") and not ending.startswith(".jsonl"):
        _require_lines(path, compression)
    return Source(path, kind, compression, status.st_size, status.st_mtime_ns)


def _require_lines(path: Path, compression: str) -> None:
    """See that a .json holds an object per line; a reader of lines would take an array for one broken document.

    Raises:
        DataError: It does not.
    """
    with _readable(path), open(path, "rb") as file:
        begin = b""
        for chunk in _UNPACK[compression](file, 0):
            begin += chunk
            if len(begin) >= _PEEK_BYTES or b"\n" in begin.strip():
                break
    begin = without_mark(begin).lstrip()
    line, is_whole, _ = begin.partition(b"\n")
    what = ""
    if begin.startswith(b"["):
        what = "one array"
    elif is_whole:
        try:
            row_of(line)
        except ValueError as error:
            try:
                line.decode("utf-8")
            except UnicodeDecodeError:
                raise DataError(f"input ({path}) must be UTF-8 text; its line 1 {error}: convert it first") from error
            what = "one value over several lines"
    if what:
        select = ".[]" if what == "one array" else "."
        unpack = {"": "cat", "gz": "gzip -dc", "zst": "zstd -dc"}[compression]
        raise DataError(
            f"input ({path}) must hold one JSON object per line, and holds {what}; write lines: "
            f"{unpack} {path} | jq -c '{select}' > {path.name.partition('.')[0]}.jsonl"
        )


def read_blocks(sources: Sequence[Source], field: Field, start: Place = Place()) -> Iterator[Block]:
    """All rows of all sources from a place on, in order. Memory: one block, whatever the size of the files.

    Raises:
        DataError: A file cannot be read, is damaged or truncated, or was changed since it was found.
    """
    before = sum(source.num_bytes for source in sources[: start.source])
    while start.source < len(sources):
        source = sources[start.source]
        last = start.source
        _check_unchanged(source)
        if source.kind == "txt":
            block = _text_block(sources, start, before)
            last = block.end.source - 1
            yield block
        elif source.kind == "jsonl":
            yield from _line_blocks(source, start, before)
        else:
            yield from _row_blocks(source, field, start, before)
        before += sum(one.num_bytes for one in sources[start.source : last + 1])
        start = Place(last + 1)


def _check_unchanged(source: Source) -> None:
    now = _source(source.path)
    if now != source:
        raise DataError(f"input ({source.path}) must stay as it is while it is packed; it was changed: pack it again")


def _text_block(sources: Sequence[Source], start: Place, before: int) -> Block:
    """The next text files together."""
    contents: list[bytes] = []
    size = 0
    for source in sources[start.source : start.source + _FILES]:
        if source.kind != "txt" or (contents and size + source.num_bytes > BLOCK_BYTES):
            break
        with _readable(source.path), open(source.path, "rb") as file:
            contents.append(file.read(source.num_bytes))
        size += source.num_bytes
    return Block(start, Place(start.source + len(contents)), contents, before + size)


def _line_blocks(source: Source, start: Place, before: int) -> Iterator[Block]:
    """Whole lines; the last may have no line end."""
    with _readable(source.path), open(source.path, "rb") as file:
        pieces: list[bytes] = []
        size = 0  # of all pieces
        for chunk in _UNPACK[source.compression](file, start.position):
            # The first line end behind BLOCK_BYTES: blocks are the same wherever reading began.
            while cut := chunk.find(b"\n", max(0, BLOCK_BYTES - 1 - size)) + 1:
                block = _lines_as_block(start, b"".join([*pieces, chunk[:cut]]), before + file.tell())
                pieces, size, chunk = [], 0, chunk[cut:]
                yield block
                start = block.end
            pieces.append(chunk)
            size += len(chunk)
            if size > BLOCK_BYTES + MOST_DOCUMENT_BYTES:  # the line that began last has no end behind BLOCK_BYTES
                row = start.row + sum(piece.count(b"\n") for piece in pieces)
                raise DataError(
                    f"line {row} of input ({source.path}) must have at most {MOST_DOCUMENT_BYTES} bytes when unpacked "
                    "(MOST_DOCUMENT_BYTES); split it into several documents"
                )
        if size:
            yield _lines_as_block(start, b"".join(pieces), before + source.num_bytes)


def _lines_as_block(start: Place, data: bytes, bytes_read: int) -> Block:
    end = Place(start.source, start.position + len(data), start.row + data.count(b"\n"))
    return Block(start, end, data, bytes_read)


def _plain(file: BinaryIO, position: int) -> Iterator[bytes]:
    file.seek(position)
    return iter(lambda: file.read(BLOCK_BYTES), b"")


def _gzip(file: BinaryIO, position: int) -> Iterator[bytes]:
    stream = gzip.GzipFile(fileobj=file)
    stream.seek(position)
    return iter(lambda: stream.read(BLOCK_BYTES), b"")


def _zstd(file: BinaryIO, position: int) -> Iterator[bytes]:
    """Frame by frame: the library's own stream ends without a word where a file is cut off."""
    try:
        import zstandard
    except ImportError as error:
        raise ConfigError("reading .zst needs the package zstandard; pip install 'modlib[data]'") from error
    frame = None
    while packed := file.read(_ZSTD_BYTES):
        while packed:
            frame = frame or zstandard.ZstdDecompressor(max_window_size=_MOST_WINDOW_BYTES).decompressobj()
            try:
                unpacked = frame.decompress(packed)
            except zstandard.ZstdError as error:
                if "memory" in str(error):  # a window that this machine has no room for; the file may be whole
                    raise DataError(
                        f"input ({file.name}) was compressed with a window that cannot be held in memory ({error}); "
                        "compress it anew: zstd --long=31 -dc FILE | zstd > NEW"
                    ) from error
                raise EOFError(str(error)) from error
            packed = frame.unused_data if frame.eof else b""
            frame = None if frame.eof else frame
            dropped = min(position, len(unpacked))
            position -= dropped
            if unpacked[dropped:]:
                yield unpacked[dropped:]
    if frame is not None:
        raise EOFError("it ends within a compressed frame")


_UNPACK: dict[str, Callable[[BinaryIO, int], Iterator[bytes]]] = {"": _plain, "gz": _gzip, "zst": _zstd}


def _row_blocks(source: Source, field: Field, start: Place, before: int) -> Iterator[Block]:
    """Rows of a table."""
    with _readable(source.path):
        for rows, share in _ROWS_OF[source.kind](source.path, field, start.position):
            end = Place(start.source, start.position + len(rows), start.row + len(rows))
            yield Block(start, end, rows, before + int(source.num_bytes * share))
            start = end


_ROWS_OF = {"parquet": parquet_rows, "arrow": arrow_rows}


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turns what the readers raise into errors that name the file."""
    try:
        yield
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise _damaged(path, error) from error
    except OSError as error:
        raise DataError(f"input ({path}) cannot be read: {error.strerror or error}; check the file") from error


def _damaged(path: Path, error: BaseException) -> DataError:
    return DataError(f"input ({path}) is damaged or truncated ({error}); copy it again")


def without_mark(data: bytes) -> bytes:
    """Without the byte-order mark that some editors put before a text."""
    return data.removeprefix(_BYTE_ORDER_MARK)


def decoded(contents: bytes, path: Path) -> str:
    """The contents of a UTF-8 text file as text, a byte-order mark dropped, line ends as they are.

    Raises:
        DataError: They are not UTF-8; the message gives the byte.
    """
    try:
        return contents.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} must be UTF-8 text; byte {error.start} is not ({error.reason}): convert it first"
        ) from error
