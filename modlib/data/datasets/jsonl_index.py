"""Where the documents of a JSONL file lie and how many tokens each has: made once, kept in the cache."""

from __future__ import annotations

import hashlib
import json
import logging
import mmap
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from modlib.data.cache import file_identity, kept, remembered_hash
from modlib.data.text.fields import text_of
from modlib.data.text.line_index import find_lines
from modlib.data.text.plain_text import Ids, PlainTextError
from modlib.data.text.sources import MOST_DOCUMENT_BYTES
from modlib.data.text.tokenizer import TextTokenizer
from modlib.runtime.errors import DataError
from modlib.runtime.hub_names import hub_hint

OnBadLine = Literal["raise", "skip"]
logger = logging.getLogger("modlib")

_VERSION = 2  # raise when the same file and settings would give another index; part of every key
_CHUNK_BYTES = 1 << 24
_BATCH_CHARACTERS = 1 << 22  # what is tokenized at once
_LINES_NAMED = 5

Offsets = npt.NDArray[np.int64]


@dataclass(frozen=True)
class JSONLIndex:
    """The documents of one file, as one tokenizer and key see them. Memory: 24 bytes per document.

    Args:
        starts: First byte of each document's line.
        lengths: Bytes of the line, its line end left out.
        num_tokens: Tokens of each document, the end-of-document token not counted.
        num_bytes_of_text: UTF-8 bytes of all texts.
        max_token_id: The largest id of any document; -1 when there is none.
        num_skipped: Lines that were left out because they are no document.
    """

    starts: Offsets
    lengths: Offsets
    num_tokens: Offsets
    num_bytes_of_text: int
    max_token_id: int
    num_skipped: int

    def __len__(self) -> int:
        return len(self.starts)


class JSONLFile:
    """The bytes of a file, memory-mapped; an empty file has none.

    Args:
        path: The file.

    Raises:
        DataError: It cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = open(path, "rb")  # noqa: SIM115  kept open: its size is watched during the run
        except OSError as error:
            hint = hub_hint(path, "dataset")
            raise DataError(f"{path} cannot be opened: {error.strerror}; check jsonl_path{hint}") from error
        self.seen = file_identity(self.status())
        empty = self.seen[0] == 0
        self.bytes: mmap.mmap | bytes = b"" if empty else mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ)

    def __reduce__(self) -> tuple[Any, ...]:  # a loader worker maps the file itself
        return (type(self), (self.path,))

    def status(self) -> os.stat_result:
        """What the system says of the file now."""
        return os.fstat(self._file.fileno())

    def sha256(self) -> str:
        """Hash of the contents, read now."""
        digest = hashlib.sha256()
        with memoryview(self.bytes) as view:
            for start in range(0, len(view), _CHUNK_BYTES):
                digest.update(view[start : start + _CHUNK_BYTES])
        return digest.hexdigest()

    def check_unchanged(self, sha256: str) -> None:
        """Refuse a file that was changed in place since it was opened; a new time stamp alone is no change.

        Raises:
            DataError: Its size or contents changed.
        """
        seen = file_identity(self.status())
        if seen == self.seen:
            return
        if seen[0] != self.seen[0] or hash_of(self) != sha256:
            raise DataError(
                f"{self.path} ({seen[0]} bytes) must stay as it was when it was opened ({self.seen[0]} bytes); the "
                "file was changed during the run: restore it, or give the new data a name of its own"
            )
        self.seen = seen


def hash_of(file: JSONLFile) -> str:
    """The hash of a file's contents, read once for each size, times and inode."""
    return remembered_hash("jsonl", file.path, file.status, file.sha256)


def load_or_build(
    file: JSONLFile,
    tokenizer: TextTokenizer,
    *,
    key: str,
    special_tokens: bool,
    on_bad_line: OnBadLine,
) -> tuple[JSONLIndex, str]:
    """The index of a file and the hash of its contents, from the cache when it was made before.

    It is kept in the cache folder by contents and settings, as plain arrays. Any number of processes may call this at
    once: one builds, the others wait.

    Args:
        file: The file.
        tokenizer: Counts tokens.
        key: Where the text is in each line's object: see `modlib.data.text.fields.text_of`.
        special_tokens: Whether special tokens written in a text become their ids.
        on_bad_line: Whether a line that is no document is an error, or left out with a warning.

    Raises:
        DataError: A line is no document and on_bad_line is "raise", or the cache cannot be written.
    """
    sha256 = hash_of(file)
    settings = [_VERSION, sha256, tokenizer.fingerprint, tokenizer.settings, key, special_tokens, on_bad_line]
    name = f"{hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:32]}.npz"

    def make(path: Path) -> JSONLIndex:
        made = build(file, tokenizer, key=key, special_tokens=special_tokens, on_bad_line=on_bad_line)
        _write(path, made)
        return made

    return kept("jsonl", name, _read, make, f"reads {file.path}"), sha256


def build(
    file: JSONLFile, tokenizer: TextTokenizer, *, key: str, special_tokens: bool, on_bad_line: OnBadLine
) -> JSONLIndex:
    """Read and tokenize every line once; see `load_or_build`."""
    building = _Building(file, tokenizer, special_tokens, on_bad_line)
    pending = 0
    for number, start, length in zip(*(column.tolist() for column in find_lines(file.bytes)), strict=True):
        if length > MOST_DOCUMENT_BYTES:
            raise DataError(
                f"line {number} of {file.path} ({length} bytes) must have at most {MOST_DOCUMENT_BYTES} "
                "(MOST_DOCUMENT_BYTES); split it into several documents"
            )
        try:
            text = text_of(file.bytes[start : start + length], key)
        except ValueError as error:
            building.take_bad(number, str(error), error)
            continue
        building.waiting.append(_Line(number, start, length, text))
        pending += len(text) + 1
        if pending >= _BATCH_CHARACTERS:
            building.count()
            pending = 0
    building.count()
    if building.num_skipped:
        named = "; ".join(building.bad)
        logger.warning("%d lines of %s are left out: %s", building.num_skipped, file.path, named)
    return building.index()


class _Line(NamedTuple):
    """A line that holds a document."""

    number: int
    start: int
    length: int
    text: str


class _Building:
    """An index under way."""

    def __init__(self, file: JSONLFile, tokenizer: TextTokenizer, special_tokens: bool, on_bad_line: str) -> None:
        self.file, self.tokenizer, self.special_tokens = file, tokenizer, special_tokens
        self.on_bad_line = on_bad_line
        self.waiting: list[_Line] = []  # not tokenized yet
        self.bad: list[str] = []
        self.num_skipped = self.num_bytes = 0
        self.largest = -1
        self._places: list[tuple[int, int]] = []
        self._counts: list[Offsets] = [np.zeros(0, np.int64)]

    def take_bad(self, number: int, problem: str, error: ValueError) -> None:
        """Leave a line out, or raise."""
        told = f"line {number} of {self.file.path} {problem}"
        if self.on_bad_line == "raise":
            raise DataError(f"{told}; correct it, or leave such lines out with on_bad_line = 'skip'") from error
        self.num_skipped += 1
        if len(self.bad) < _LINES_NAMED:
            self.bad.append(told)

    def count(self) -> None:
        """Tokenize the lines that wait."""
        try:
            ids, per_text = self._encoded()
        except PlainTextError:  # of one of them
            self.waiting = [line for line in self.waiting if self._can_be_encoded(line)]
            ids, per_text = self._encoded()
        self._places += [(line.start, line.length) for line in self.waiting]
        self._counts.append(per_text)
        self.num_bytes += sum(len(line.text.encode("utf-8")) for line in self.waiting)
        self.largest = max(self.largest, int(ids.max()) if len(ids) else -1)
        self.waiting = []

    def _encoded(self) -> tuple[Ids, Offsets]:
        return self.tokenizer.encode_batch([line.text for line in self.waiting], special_tokens=self.special_tokens)

    def _can_be_encoded(self, line: _Line) -> bool:
        try:
            self.tokenizer.encode(line.text)
        except PlainTextError as error:
            self.take_bad(line.number, error.reason, error)
            return False
        return True

    def index(self) -> JSONLIndex:
        """Of what was counted."""
        starts, lengths = np.array(self._places, np.int64).reshape(-1, 2).T.copy()
        return JSONLIndex(starts, lengths, np.concatenate(self._counts), self.num_bytes, self.largest, self.num_skipped)


def _read(path: Path) -> JSONLIndex | None:
    """What `_write` wrote; None when it is not there or damaged (it is then made again)."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            numbers = arrays["numbers"].tolist()
            found = JSONLIndex(arrays["starts"], arrays["lengths"], arrays["num_tokens"], *numbers)
    except FileNotFoundError:
        return None
    except Exception as error:  # zip and array readers raise many kinds for a damaged file
        logger.warning("index %s is damaged and is made again: %s", path, error)
        return None
    return found


def _write(path: Path, index: JSONLIndex) -> None:
    aside = path.with_name(f".{path.stem}.{os.getpid()}.npz")
    numbers = np.array([index.num_bytes_of_text, index.max_token_id, index.num_skipped], np.int64)
    try:
        np.savez(aside, starts=index.starts, lengths=index.lengths, num_tokens=index.num_tokens, numbers=numbers)
        os.replace(aside, path)
    except OSError as error:
        aside.unlink(missing_ok=True)
        raise DataError(f"index cannot be written to {path.parent}: {error.strerror}; set MODLIB_CACHE") from error
