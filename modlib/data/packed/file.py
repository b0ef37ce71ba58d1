"""A packed token file opened for reading: memory-mapped, every size checked first."""

from __future__ import annotations

import hashlib
import mmap
import os
import resource
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from modlib.data import cache
from modlib.data.packed.header import HEADER_BYTES, PackedHeader, decode_header
from modlib.data.packed.reading import pieces
from modlib.data.progress import Progress, no_progress
from modlib.runtime.errors import DataError
from modlib.runtime.hub_names import hub_hint

TOKEN_DTYPES: dict[int, np.dtype[Any]] = {1: np.dtype("<u1"), 2: np.dtype("<u2"), 4: np.dtype("<u4")}
_CHUNK_BYTES = 1 << 24
_CHUNK_TOKENS = 1 << 20
_REMEMBERED_FROM_BYTES = 1 << 24  # hashed in some 20 ms; to remember a smaller file's hash takes as long
_KIND = "packed"
_BITS_AT_ONCE = 1 << 20  # of the loss mask, at 8 bytes of count each
_READ_WHOLE_BYTES = 1 << 26
_TOLD_AFTER_A_FAULT = 64  # calls: of a file that is not in memory, so few go without
_OFFSETS_CHECKED_ON_OPEN = 1_000_000  # 8 MB; more are checked by verify() and, one by one, by document()


class PackedFile:
    """Tokens of many documents, back to back, in one memory-mapped file.

    Opening reads the header and the document offsets only. `verify_once` compares the contents with the header's hash;
    training does so before the first step. The file stays mapped as it was opened: replacing it by a rename does not
    disturb a reader.

    Args:
        path: A file written by `PackedFileWriter`.

    Raises:
        DataError: The file is missing, not a packed file, truncated even by a byte, or contradicts itself.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        try:
            self._file = open(self.path, "rb")  # noqa: SIM115  kept open: its size is watched during the run
        except OSError as error:
            hint = hub_hint(path, "dataset")
            raise DataError(f"{self.path} cannot be opened: {error.strerror}; check the path{hint}") from error
        try:
            status = self.status()
            self._seen, self._verified = cache.file_identity(status), False
            self.reading: Progress = no_progress
            """Told of bytes read, and of all there are, while the contents are hashed or another process does it."""
            self.header: PackedHeader = decode_header(self._file.read(HEADER_BYTES), self.path, status.st_size)
            self._map = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            self._file.close()
            raise DataError(f"{self.path} cannot be read: {error.strerror or error}; check the file") from error
        except DataError:
            self._file.close()
            raise
        self._is_large = self.header.file_bytes > _READ_WHOLE_BYTES and hasattr(os, "posix_fadvise")
        self._faults, self._telling = -1, 0
        dtype = TOKEN_DTYPES[self.header.token_width]
        self.tokens: np.ndarray[Any, Any] = self._section("tokens", dtype)
        self.document_offsets: np.ndarray[Any, Any] = self._section("documents", np.dtype("<i8"))
        self.has_loss_mask = "loss_mask" in self.header.sections
        """Whether the file says of each token if it is trained; else all are."""
        self._mask: np.ndarray[Any, Any] | None = None
        if self.has_loss_mask:
            self._mask = self._section("loss_mask", np.dtype(np.uint8))
        self._check_ends()
        if self.num_documents <= _OFFSETS_CHECKED_ON_OPEN:
            self.check_order()

    def _section(self, name: str, dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
        offset, length = self.header.sections[name]
        return np.frombuffer(self._map, dtype, length // dtype.itemsize, offset)

    def __reduce__(self) -> tuple[Any, ...]:  # a loader worker maps the file itself
        return (_reopened, (self.path, self.sha256, self._seen, self._verified))

    def __repr__(self) -> str:
        mask = ", with a loss mask" if self.has_loss_mask else ""
        return f"PackedFile({str(self.path)!r}: {self.num_tokens} tokens, {self.num_documents} documents{mask})"

    @property
    def num_tokens(self) -> int:
        return self.header.num_tokens

    @property
    def num_documents(self) -> int:
        return self.header.num_documents

    @property
    def num_bytes_of_text(self) -> int:
        """UTF-8 bytes of the source text; with num_tokens it turns nats per token into bits per byte."""
        return self.header.num_bytes_of_text

    @property
    def vocab_size(self) -> int:
        return self.header.vocab_size

    @property
    def max_token_id(self) -> int:
        return self.header.max_token_id

    @property
    def tokenizer_fingerprint(self) -> str:
        return self.header.tokenizer_fingerprint

    @property
    def sha256(self) -> str:
        """Hash of everything after the header: equal on every machine for equal contents."""
        return self.header.sha256

    def status(self) -> os.stat_result:
        """What the system says of the file now."""
        return os.fstat(self._file.fileno())

    def documents_sha256(self) -> str:
        """Hash of the document offsets, read now, without mapping them."""
        digest = hashlib.sha256()
        offset, length = self.header.sections["documents"]
        for piece in pieces(self._file.fileno(), self.path, offset, offset + length):
            digest.update(piece)
        return digest.hexdigest()

    def document(self, index: int) -> np.ndarray[Any, Any]:
        """The tokens of one document, its end-of-document token included.

        Raises:
            DataError: There is no such document, or its offsets are damaged.
        """
        if not 0 <= index < self.num_documents:
            there = f"0 to {self.num_documents - 1}" if self.num_documents else "none: there is no document"
            raise DataError(f"document ({index}) must be {there} in {self.path}; choose another number")
        start, end = self.document_offsets[index : index + 2].tolist()
        if not 0 <= start <= end <= self.num_tokens:
            raise DataError(self._offsets_message(index, start, end))
        return self.tokens[start:end]

    def trained(self, start: int, stop: int) -> npt.NDArray[np.bool_]:
        """Whether each of the tokens start..stop-1 counts when it is a target; all do in a file without a loss mask."""
        if self._mask is None:
            return np.ones(max(stop - start, 0), np.bool_)
        first = start // 8
        bits = np.unpackbits(self._mask[first : -(-stop // 8)], bitorder="little")
        return bits[start - 8 * first : stop - 8 * first].view(np.bool_)

    def count_trained(self, starts: npt.ArrayLike, lengths: npt.ArrayLike) -> int:
        """How many tokens of some stretches are trained; a token of several stretches counts in each."""
        begins = np.asarray(starts, np.int64).reshape(-1)
        ends = begins + np.asarray(lengths, np.int64).reshape(-1)
        if self._mask is None:
            return int((ends - begins).sum())
        return int(self._trained_before(ends).sum() - self._trained_before(begins).sum())

    def _trained_before(self, places: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """The number of trained tokens before each place, in the order of the places; one pass over the mask."""
        places = np.sort(places)
        found = np.empty_like(places)
        before = done = 0
        for start in range(0, self.num_tokens, _BITS_AT_ONCE):
            counts = np.cumsum(self.trained(start, min(start + _BITS_AT_ONCE, self.num_tokens)), dtype=np.int64)
            behind = int(np.searchsorted(places, start + len(counts)))
            found[done:behind] = before + np.concatenate([[0], counts])[places[done:behind] - start]
            before += int(counts[-1])
            done = behind
        found[done:] = before
        return found

    def read_ahead(self, starts: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64] | int) -> None:
        """Tell the system which tokens are read next, so that it fetches all of them at once, and nothing around them.

        Returns before they are there. Nothing is told of a small file, which was read whole when it was verified, nor
        while everything is found in memory: it is told at first, and for a while after this thread had to wait for a
        page of any file.

        Args:
            starts: First token of each piece.
            lengths: Tokens of each piece, or of all.
        """
        if not self._is_large:
            return
        if self._faults < 0:  # who names what is read next is not helped by what lies around it, often megabytes
            self._map.madvise(mmap.MADV_RANDOM, 0, sum(self.header.sections["tokens"]))
        faults = resource.getrusage(resource.RUSAGE_THREAD).ru_majflt
        if faults != self._faults:
            self._faults, self._telling = faults, _TOLD_AFTER_A_FAULT
        if not self._telling:
            return
        self._telling -= 1
        file, width, base = self._file.fileno(), self.header.token_width, self.header.sections["tokens"][0]
        sizes = np.broadcast_to(width * np.asarray(lengths), starts.shape).tolist()
        for start, length in zip((base + width * starts).tolist(), sizes, strict=True):
            os.posix_fadvise(file, start, length, os.POSIX_FADV_WILLNEED)

    def verify_once(self) -> None:
        """Compare the contents with the header, unless that was done before with the file as it is now.

        Of a file of 16 MiB or more it is remembered for all processes, by size, times and inode; see `remembered_hash`.

        Raises:
            DataError: Something differs from what was written.
        """
        if self._verified and cache.file_identity(self.status()) == self._seen:
            return
        if self.header.file_bytes < _REMEMBERED_FROM_BYTES:
            self.verify()
            return
        seen = cache.file_identity(self.status())
        try:
            found = cache.remembered_hash(_KIND, self.path, self.status, self._verified_hash, self._wait)
        except (cache.CacheError, OSError):
            found = ""
        if found == self.sha256:
            self._check_header()
            self._seen, self._verified = seen, True
        else:  # nothing can be remembered, or what is remembered was changed
            self.verify()

    def verify(self) -> None:
        """Read the whole file and compare it with its hash, whatever is remembered; ids and offsets are checked too.

        Raises:
            DataError: Something differs from what was written.
        """
        before = self.status()
        self._verified_hash()
        if cache.file_identity(self.status()) == cache.file_identity(before):
            self.remember(before)

    def remember(self, status: os.stat_result) -> None:
        """Take note that the contents were read and found to be what the header says.

        Args:
            status: The file as it was when they were read.
        """
        self._seen, self._verified = cache.file_identity(status), True
        remember_contents(self.path, status, self.sha256)

    def _wait(self) -> None:
        self.reading(0, self.header.file_bytes)

    def _verified_hash(self) -> str:
        """The SHA-256 of the contents, read now, which is the header's."""
        self._check_header()
        found, largest = self.read_through(self.reading)
        beyond = self._first_beyond(0, self.num_tokens) if largest > self.max_token_id else None
        also = "" if beyond is None else f", and has token id {self.tokens[beyond]} at {self.place(beyond)}"
        if found != self.sha256:
            raise DataError(
                f"SHA-256 of the contents of {self.path} ({found}) must equal the one in its header ({self.sha256})"
                f"{also}; the file was changed or damaged: copy it again or pack it again"
            )
        self.check_order()
        if largest != self.max_token_id:
            raise DataError(
                f"max_token_id of {self.path} ({self.max_token_id}) must equal the largest id in it ({largest}){also}; "
                "pack it again"
            )
        return found

    def read_through(self, progress: Progress) -> tuple[str, int]:
        """The SHA-256 of everything after the header, and the largest id, read from the file.

        Args:
            progress: Called with the bytes read so far, and all of them.

        Raises:
            DataError: It cannot be read, or has become shorter.
        """
        digest, largest = hashlib.sha256(), 0
        end_of_tokens = sum(self.header.sections["tokens"])
        done, end = HEADER_BYTES, self.header.file_bytes
        for piece in pieces(self._file.fileno(), self.path, done, end):
            digest.update(piece)
            ids = np.frombuffer(piece[: max(0, min(len(piece), end_of_tokens - done))], self.tokens.dtype)
            largest = max(largest, int(ids.max(initial=0)))
            done += len(piece)
            progress(done, end)
        return digest.hexdigest(), largest

    def check_ids(self, largest: int, starts: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64] | int) -> None:
        """Refuse ids that are not below the model's vocabulary, which the header's largest one was compared with.

        Args:
            largest: Of the ids that were just read.
            starts: The first token of each stretch that they were read from.
            lengths: Tokens of each, or of all.

        Raises:
            DataError: It is larger than any that the header promises; with its place.
        """
        if largest <= self.max_token_id:
            return
        place = ""
        for start, length in zip(starts.tolist(), np.broadcast_to(lengths, starts.shape).tolist(), strict=True):
            if (token := self._first_beyond(start, start + length)) is not None:
                largest, place = int(self.tokens[token]), f" at {self.place(token)}"
                break
        raise DataError(
            f"token id ({largest}){place} of {self.path} must be at most {self.max_token_id}, the largest that its "
            "header promises; the file was changed or damaged: copy it again or pack it again"
        )

    def _first_beyond(self, start: int, stop: int) -> int | None:
        """The first of the tokens start..stop-1 that is larger than the header promises."""
        for first in range(start, stop, _CHUNK_TOKENS):
            beyond = self.tokens[first : min(first + _CHUNK_TOKENS, stop)] > self.max_token_id
            if beyond.any():
                return first + int(np.argmax(beyond))
        return None

    def place(self, token: int) -> str:
        """Where in the file a token is, for messages."""
        document = int(np.searchsorted(self.document_offsets, token, side="right")) - 1
        byte = self.header.sections["tokens"][0] + token * self.header.token_width
        return f"token {token}, byte {byte}, document {document}"

    def check_order(self) -> None:
        """Read all document offsets; opening does it for a million or less.

        Raises:
            DataError: They are not in order.
        """
        per_chunk = _CHUNK_BYTES // 8
        for start in range(0, self.num_documents, per_chunk):
            part = self.document_offsets[start : start + per_chunk + 1]
            falls = np.flatnonzero(part[1:] < part[:-1])
            if falls.size:
                index = start + int(falls[0])
                raise DataError(self._offsets_message(index, *self.document_offsets[index : index + 2].tolist()))

    def check_unchanged(self) -> None:
        """Refuse a file that was changed in place since it was opened; costs microseconds.

        New times alone are no change: then the whole contents are verified once more.

        Raises:
            DataError: The size or the contents changed.
        """
        status = self.status()
        if cache.file_identity(status) == self._seen:
            return
        if status.st_size != self._seen[0]:
            raise DataError(
                f"size of {self.path} ({status.st_size} bytes) must stay the {self._seen[0]} bytes it had when it was "
                "opened; the file was changed during the run: restore it, or give the new data a name of its own"
            )
        self._check_header()
        self.verify_once()

    def _check_header(self) -> None:
        status = self.status()
        header = decode_header(os.pread(self._file.fileno(), HEADER_BYTES, 0), self.path, status.st_size)
        if header != self.header:
            raise DataError(
                f"contents of {self.path} ({header.sha256[:12]}) must stay the ones it was opened with "
                f"({self.sha256[:12]}); the file was changed during the run: restore it"
            )

    def _check_ends(self) -> None:
        first, last = int(self.document_offsets[0]), int(self.document_offsets[-1])
        if first != 0 or last != self.num_tokens:
            raise DataError(
                f"document offsets of {self.path} ({first} to {last}) must run from 0 to its number of tokens "
                f"({self.num_tokens}); the file is damaged: copy it again or pack it again"
            )

    def _offsets_message(self, index: int, start: int, end: int) -> str:
        return (
            f"document {index} of {self.path} (tokens {start} to {end}) must lie in order within its {self.num_tokens} "
            "tokens; the file is damaged: copy it again or pack it again"
        )


def remember_contents(path: Path, status: os.stat_result, sha256: str) -> None:
    """Remember the hash of a packed file that was read or written whole, so that it is not read for it again."""
    if status.st_size >= _REMEMBERED_FROM_BYTES:
        cache.remember_hash(_KIND, path, status, sha256)


def _reopened(path: Path, sha256: str, seen: tuple[int, ...], verified: bool) -> PackedFile:
    """A file in another process; it must be the one that the first process opened, and verified if it was there."""
    packed = PackedFile(path)
    if packed.sha256 != sha256:
        raise DataError(
            f"contents of {path} ({packed.sha256[:12]}) must stay the ones it was opened with ({sha256[:12]}); "
            "the file was replaced during the run: restore it"
        )
    if verified:
        packed._verified = packed._seen == seen
        packed.verify_once()
    return packed
