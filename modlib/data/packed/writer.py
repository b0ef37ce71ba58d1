"""Writing a packed token file: streamed, complete or not there at all."""

from __future__ import annotations

import contextlib
import hashlib
import mmap
import os
import secrets
import tempfile
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, cast

import numpy as np
import numpy.typing as npt

from modlib.data.packed.file import TOKEN_DTYPES, remember_contents
from modlib.data.packed.header import (
    HEADER_BYTES,
    PackedHeader,
    encode_header,
    layout,
    narrowest_width,
)
from modlib.data.packed.outputs import exists
from modlib.data.packed.waiting_mask import WaitingMask
from modlib.runtime import durable
from modlib.runtime.errors import DataError

_COUNTED = ("num_tokens", "num_documents", "num_bytes_of_text", "max_token_id")
_LENGTH = np.dtype("<i8")
_CHUNK_BYTES = 1 << 22
_HASHED_BESIDE_BYTES = 1 << 17  # handing less to the thread takes longer than it saves


class _HashBeside:
    """SHA-256 of what is passed one after the other, computed by a thread while the caller goes on."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self._thread = ThreadPoolExecutor(1, "modlib-hash")
        self._waiting: Future[None] | None = None

    def update(self, data: bytes | memoryview) -> None:
        """Take in bytes, which must stay as they are until the next call of anything here."""
        self.wait()
        if len(data) < _HASHED_BESIDE_BYTES:
            self._hash.update(data)
        else:
            self._waiting = self._thread.submit(self._hash.update, data)

    def wait(self) -> None:
        """Return when everything was taken in."""
        if self._waiting is not None:
            self._waiting.result()
            self._waiting = None

    def hexdigest(self) -> str:
        """The hash of all that was passed, in hex."""
        self.wait()
        return self._hash.hexdigest()

    def close(self) -> None:
        """End the thread."""
        self._thread.shutdown()


class PackedFileWriter:
    """Writes documents of token ids; use as a context manager.

    Tokens are streamed into a file beside the final one whose header is still empty. Leaving the block writes the
    header last, waits for the disk and renames: at every instant the final path holds the old file, the whole new
    one, or nothing. An exception inside the block removes what was written. Memory is bounded: the lengths of the
    documents, and the loss mask, wait in files, too.

    With `partial`, the work can be continued after it was cut off: what was written up to a `checkpoint` stays there,
    and the next writer takes it up.

    Args:
        path: The file to make; its folder is created.
        vocab_size: Every id must be below it; also chooses the token width.
        tokenizer_fingerprint: Of the tokenizer that made the ids; empty when unknown.
        end_of_document_id: The id that the caller puts at the end of each document, for readers to know.
        token_width: Bytes per token; None takes the narrowest of 1, 2, 4 that holds vocab_size.
        loss_mask: Whether the file says of each token if it is trained; else all are.
        info: Anything else worth keeping in the header, as JSON.
        overwrite: Whether an existing file is replaced.
        partial: Where the file is written until it is complete, in a folder that exists, on the same file system; it
            stays when the block is left by an exception. None: beside the file, and removed.
        state: What `checkpoint` returned when `partial` was written; everything after it is thrown away.

    Raises:
        DataError: The file exists, cannot be written, or an id is out of vocabulary.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        vocab_size: int,
        tokenizer_fingerprint: str = "",
        end_of_document_id: int | None = None,
        token_width: int | None = None,
        loss_mask: bool = False,
        info: Mapping[str, Any] | None = None,
        overwrite: bool = False,
        partial: Path | None = None,
        state: Mapping[str, int] | None = None,
    ) -> None:
        self.path = Path(path)
        least = narrowest_width(vocab_size)
        self.token_width = least if token_width is None else token_width
        if self.token_width not in TOKEN_DTYPES or self.token_width < least:
            raise DataError(f"token_width ({token_width}) must be 1, 2 or 4 and at least {least} for {vocab_size} ids")
        if self.path.exists() and not overwrite:
            raise exists(self.path)
        self.vocab_size = vocab_size
        self.tokenizer_fingerprint = tokenizer_fingerprint
        self.end_of_document_id = end_of_document_id
        self.has_loss_mask = loss_mask
        self.info = dict(info or {})
        counts = dict.fromkeys(_COUNTED, 0) | dict(state or {})
        self.num_tokens, self.num_documents = counts["num_tokens"], counts["num_documents"]
        self.num_bytes_of_text, self.max_token_id = counts["num_bytes_of_text"], counts["max_token_id"]
        self.header: PackedHeader | None = None
        self._hash = _HashBeside()
        self._stays = partial is not None
        self._aside = partial or self.path.with_name(f".{self.path.name}.{secrets.token_hex(4)}.tmp")
        self._waiting = self._aside.with_name(f"{self._aside.name}.lengths")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file, self._lengths = self._continued() if state is not None else self._new()
            self._mask = self._waiting_mask(continued=state is not None) if loss_mask else None
        except OSError as error:
            raise _cannot_write(self.path, error) from error

    def _new(self) -> tuple[BinaryIO, BinaryIO]:
        if self._stays:
            self._aside.unlink(missing_ok=True)
            lengths: BinaryIO = open(self._waiting, "w+b")  # noqa: SIM115
        else:  # without a name: gone with this process, however it ends
            lengths = cast(BinaryIO, tempfile.TemporaryFile(dir=self.path.parent))  # noqa: SIM115
        file = os.fdopen(durable.create_file(self._aside), "wb", buffering=1 << 20)
        file.write(bytes(HEADER_BYTES))
        return file, lengths

    def _continued(self) -> tuple[BinaryIO, BinaryIO]:
        file, lengths = open(self._aside, "r+b", buffering=1 << 20), open(self._waiting, "r+b")  # noqa: SIM115
        ends = (HEADER_BYTES + self.num_tokens * self.token_width, self.num_documents * _LENGTH.itemsize)
        for one, end in zip((file, lengths), ends, strict=True):
            if one.seek(0, os.SEEK_END) < end:
                raise DataError(f"{one.name} must hold at least {end} bytes; bytes were lost: start again")
            one.truncate(end)
            one.seek(end)
        file.seek(HEADER_BYTES)
        while chunk := file.read(_CHUNK_BYTES):
            self._hash.update(chunk)
        return file, lengths

    def _waiting_mask(self, *, continued: bool) -> WaitingMask:
        path = self._aside.with_name(f"{self._aside.name}.loss_mask") if self._stays else None
        return WaitingMask(path, self.path.parent, self.num_tokens if continued else None)

    def checkpoint(self) -> dict[str, int]:
        """Bring what was written to the disk; what is needed to take it up again."""
        try:
            for file, path in ((self._file, self._aside), (self._lengths, self._waiting)):
                file.flush()
                durable.fsync_file(file.fileno(), path)
            if self._mask is not None:
                self._mask.checkpoint()
        except OSError as error:
            raise _cannot_write(self.path, error) from error
        return {name: getattr(self, name) for name in _COUNTED}

    def write(self, tokens: npt.ArrayLike, num_bytes_of_text: int = 0, trained: npt.ArrayLike | None = None) -> None:
        """Append one document; see `write_documents`."""
        array = np.asarray(tokens)
        self.write_documents(array, np.array([array.size]), num_bytes_of_text, trained)

    def write_documents(
        self,
        tokens: npt.ArrayLike,
        lengths: npt.ArrayLike,
        num_bytes_of_text: int = 0,
        trained: npt.ArrayLike | None = None,
    ) -> None:
        """Append many documents at once.

        Args:
            tokens: Ids of all documents, back to back.
            lengths: Tokens of each document; their sum is the number of ids.
            num_bytes_of_text: UTF-8 bytes of the text they came from, together.
            trained: Whether each token is a target that counts, for a file with a loss mask; None is all of them.

        Raises:
            DataError: An id is negative or not below vocab_size; the message names the document.
        """
        ids = np.asarray(tokens).reshape(-1)
        counts = np.asarray(lengths, dtype=np.int64).reshape(-1)
        if counts.sum() != ids.size or (counts.size and counts.min() < 0):
            raise DataError(f"lengths (sum {counts.sum()}) must add up to the number of tokens ({ids.size})")
        mask = self._checked_mask(trained, ids.size)
        if ids.size:
            self.max_token_id = max(self.max_token_id, self._largest(ids, counts))
            self._append(np.ascontiguousarray(ids, dtype=TOKEN_DTYPES[self.token_width]))
        try:
            self._lengths.write(counts.astype(_LENGTH).tobytes())
            if self._mask is not None:
                self._mask.write(mask)
        except OSError as error:
            raise _cannot_write(self.path, error) from error
        self.num_documents += counts.size
        self.num_tokens += ids.size
        self.num_bytes_of_text += num_bytes_of_text

    def _checked_mask(self, trained: npt.ArrayLike | None, size: int) -> npt.NDArray[np.bool_]:
        if trained is None:
            return np.ones(size if self.has_loss_mask else 0, np.bool_)
        mask = np.asarray(trained, dtype=np.bool_).reshape(-1)
        if mask.size != size or not self.has_loss_mask:
            raise DataError(
                f"trained ({mask.size} of them) must be one per token ({size}), and of a file with a loss mask; "
                "pass loss_mask=True to the writer"
            )
        return mask

    def _largest(self, ids: npt.NDArray[Any], counts: npt.NDArray[np.int64]) -> int:
        """The largest id; all are in the vocabulary."""
        if ids.dtype.kind not in "iu":
            raise DataError(f"dtype of the tokens ({ids.dtype}) must be an integer type; pass token ids")
        largest = int(ids.max())
        if largest < self.vocab_size and (ids.dtype.kind == "u" or ids.min() >= 0):
            return largest
        place = int(np.flatnonzero((ids < 0) | (ids >= self.vocab_size))[0])
        document = self.num_documents + int(np.searchsorted(np.cumsum(counts), place, side="right"))
        raise DataError(
            f"token id ({ids[place]}) of document {document} must be at least 0 and below vocab_size "
            f"({self.vocab_size}); check that the ids come from this tokenizer"
        )

    def _append(self, array: npt.NDArray[Any]) -> None:
        data = array.view(np.uint8).data
        self._hash.update(data)
        try:
            self._file.write(data)
        except OSError as error:
            raise _cannot_write(self.path, error) from error
        if not _stays_as_it_is(array):
            self._hash.wait()  # the caller may change it afterwards

    def commit(self) -> None:
        """Write offsets and header, wait for the disk, and rename to the final path."""
        sections = layout(self.num_tokens, self.num_documents, self.token_width, loss_mask=self.has_loss_mask)
        end_of_tokens = HEADER_BYTES + self.num_tokens * self.token_width
        self._append(np.zeros(sections["documents"][0] - end_of_tokens, np.uint8))
        self._append(np.zeros(1, "<u8"))
        end = 0
        self._lengths.seek(0)
        while chunk := self._lengths.read(_CHUNK_BYTES):
            ends = end + np.cumsum(np.frombuffer(chunk, _LENGTH))
            end = int(ends[-1])
            self._append(ends.astype("<u8"))
        if self._mask is not None:
            self._append(np.zeros(sections["loss_mask"][0] - sum(sections["documents"]), np.uint8))
            for chunk in self._mask.chunks(_CHUNK_BYTES):
                self._append(np.frombuffer(chunk, np.uint8))
        header = PackedHeader(
            token_width=self.token_width,
            num_tokens=self.num_tokens,
            num_documents=self.num_documents,
            num_bytes_of_text=self.num_bytes_of_text,
            vocab_size=self.vocab_size,
            max_token_id=self.max_token_id,
            tokenizer_fingerprint=self.tokenizer_fingerprint,
            end_of_document_id=self.end_of_document_id,
            sha256=self._hash.hexdigest(),
            sections=sections,
            info=self.info,
        )
        self._hash.close()
        try:
            self._file.flush()
            durable.fsync_file(self._file.fileno(), self._aside)  # tokens first: a header never describes lost bytes
            self._file.seek(0)
            self._file.write(encode_header(header))
            self._file.flush()
            durable.fsync_file(self._file.fileno(), self._aside)
            self._file.close()
            self._lengths.close()
            if self._mask is not None:
                self._mask.close()
            durable.rename(self._aside, self.path)
            durable.fsync_directory(self.path.parent)
            status = self.path.stat()
        except OSError as error:
            raise _cannot_write(self.path, error) from error
        self.header = header
        remember_contents(self.path, status, header.sha256)

    def abort(self) -> None:
        """Throw away what was written, unless it can be continued; the final path is untouched."""
        self._hash.close()
        for file in (self._file, self._lengths, self._mask):
            with contextlib.suppress(OSError):  # the disk may be full: the buffered rest is not needed
                if file is not None:
                    file.close()
        if not self._stays:
            self._aside.unlink(missing_ok=True)

    def __enter__(self) -> PackedFileWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is not None:
            self.abort()
            return
        try:
            self.commit()
        except BaseException:
            self.abort()
            raise


def _stays_as_it_is(array: npt.NDArray[Any]) -> bool:
    """Whether nobody can change an array: it lies in bytes, or in a file that is mapped to be read."""
    memory: Any = array
    while isinstance(memory, np.ndarray):
        if memory.flags.writeable:
            return False
        memory = memory.base
    while isinstance(memory, memoryview):
        memory = memory.obj
    return isinstance(memory, bytes) or (isinstance(memory, mmap.mmap) and memoryview(memory).readonly)


def _cannot_write(path: Path, error: OSError) -> DataError:
    return DataError(f"{path} cannot be written: {error.strerror or error}; free space or choose another folder")
