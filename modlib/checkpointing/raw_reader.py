"""Reading: torch's distributed checkpoint plans who needs what; each file is hashed in the same pass that reads it.

Every file that any rank needs is verified by exactly one rank. A rank that needs most of a file reads it whole, hashes
it and keeps what it needs on the way; others read their parts only. Nothing is used before all ranks have agreed that
all files are what was saved, so a rank relies on its neighbours' hashes for the parts it did not hash itself.
"""

from __future__ import annotations

import hashlib
import math
import os
import stat
import threading
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadItemType, LoadPlan, LoadPlanner, ReadItem
from torch.distributed.checkpoint.storage import StorageReader
from torch.futures import Future

from modlib.checkpointing.manifest import (
    DTYPE_BYTES,
    Chunk,
    DamagedCheckpointError,
    Manifest,
    StoredFile,
    data_file_name,
)
from modlib.checkpointing.raw_writer import bytes_of

PIECE_BYTES = 1 << 20  # small enough to be hashed while still in the CPU's cache


@dataclass(frozen=True)
class Span:
    """Bytes of one file that go to one place in memory."""

    offset: int
    target: memoryview


@dataclass
class Reads:
    """What one rank reads: spans by file name, and what to do with copied parts once all bytes are there."""

    spans: dict[str, list[Span]] = field(default_factory=lambda: defaultdict(list))
    finishers: list[Callable[[], object]] = field(default_factory=list)


class RawReader(StorageReader):
    """Reads raw tensor bytes with several threads, straight into contiguous CPU tensors, and verifies every file.

    Args:
        path: The checkpoint's directory.
        manifest: Its manifest, parsed and checked.
        num_threads: Threads that read and hash.
    """

    def __init__(self, path: Path, manifest: Manifest, num_threads: int) -> None:
        self.path = path
        self.manifest = manifest
        self.num_threads = num_threads
        self.chunks = {(key, chunk.offsets): chunk for key, entry in manifest.tensors.items() for chunk in entry.chunks}

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """Nothing is kept between loads; a reader is made for each."""

    def read_metadata(self, *_: Any, **__: Any) -> Metadata:
        """The manifest's tensors in torch's terms."""
        return Metadata(
            {
                key: TensorStorageMetadata(
                    properties=TensorProperties(dtype=getattr(torch, entry.dtype)),
                    size=torch.Size(entry.shape),
                    chunks=[
                        ChunkStorageMetadata(torch.Size(chunk.offsets), torch.Size(chunk.sizes))
                        for chunk in entry.chunks
                    ],
                )
                for key, entry in self.manifest.tensors.items()
            }
        )

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Nothing to set up."""

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        """Count the bytes of each file that this rank needs, for the division of the verification."""
        needed: dict[str, int] = defaultdict(int)
        for item in plan.items:
            chunk, begin, length = self._byte_range(item)
            for name, _, start, end in byte_cuts(self.manifest, chunk, begin, length):
                needed[name] += end - start
        return replace(plan, storage_data=dict(needed))

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        """Let each file be verified by the rank that needs most of it, the least busy one among equals."""
        busy = [0] * len(plans)
        verified: list[list[str]] = [[] for _ in plans]
        names = sorted({name for plan in plans for name in plan.storage_data})
        for name in names:
            rank = min(range(len(plans)), key=lambda rank: (-plans[rank].storage_data.get(name, 0), busy[rank], rank))
            busy[rank] += self.manifest.files[name].size
            verified[rank].append(name)
        return [replace(plan, storage_data=files) for plan, files in zip(plans, verified, strict=True)]

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Read this rank's parts and verify this rank's files.

        Raises:
            DamagedCheckpointError: A file is missing, of another size, or its SHA-256 differs.
        """
        reads = Reads()
        for item in plan.items:
            assert item.type == LoadItemType.TENSOR
            self._add(item, planner.resolve_tensor(item).detach(), reads)
        verified = set(plan.storage_data)
        names = sorted(verified | reads.spans.keys())
        stop = threading.Event()

        def read(name: str) -> None:
            if stop.is_set():
                return
            try:
                spans = sorted(reads.spans.get(name, []), key=lambda span: span.offset)
                read_file(self.path / name, self.manifest.files[name], spans, verify=name in verified)
            except BaseException:
                stop.set()
                raise

        with ThreadPoolExecutor(self.num_threads, thread_name_prefix="checkpoint") as threads:
            futures = [threads.submit(read, name) for name in names]
        for done in futures:
            done.result()
        for finish in reads.finishers:
            finish()
        future: Future[None] = Future()
        future.set_result(None)
        return future

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:  # noqa: ARG003  torch's
        """Never asked: the reader is passed itself, not found by a path."""
        return False

    def _chunk(self, index: MetadataIndex) -> Chunk:
        assert index.offset is not None
        return self.chunks[index.fqn, tuple(index.offset)]

    def _byte_range(self, item: ReadItem) -> tuple[Chunk, int, int]:
        """The chunk an item reads from and the range of its bytes that holds what is needed, in whole rows."""
        chunk = self._chunk(item.storage_index)
        width = DTYPE_BYTES[self.manifest.tensors[item.storage_index.fqn].dtype]
        if not chunk.sizes:
            return chunk, 0, width
        row = width * math.prod(chunk.sizes[1:])
        return chunk, item.storage_offsets[0] * row, item.lengths[0] * row

    def _add(self, item: ReadItem, target: Tensor, reads: Reads) -> None:
        """Plan one item's bytes: straight into the target where its memory is those bytes, else through a buffer."""
        chunk, begin, length = self._byte_range(item)
        if length == 0:
            return
        inner_whole = tuple(item.lengths[1:]) == chunk.sizes[1:]
        if inner_whole and target.device.type == "cpu" and target.is_contiguous():
            memory = bytes_of(target).data
        else:
            rows = (item.lengths[0], *chunk.sizes[1:]) if chunk.sizes else ()
            buffer = torch.empty(rows, dtype=target.dtype)
            part = buffer
            for dim in range(1, len(rows)):
                part = part.narrow(dim, item.storage_offsets[dim], item.lengths[dim])
            reads.finishers.append(partial(target.copy_, part))
            memory = bytes_of(buffer).data
        for name, before, start, end in byte_cuts(self.manifest, chunk, begin, length):
            reads.spans[name].append(Span(start, memory[before : before + end - start]))


def byte_cuts(manifest: Manifest, chunk: Chunk, begin: int, length: int) -> list[tuple[str, int, int, int]]:
    """A chunk's byte range as (file name, bytes of the range before it, start, end) per file it lies in."""
    file_size = manifest.streams[chunk.rank].file_size
    position, last = chunk.start + begin, chunk.start + begin + length
    cuts = []
    while position < last:
        index = position // file_size
        end = min((index + 1) * file_size, last)
        cuts.append(
            (
                data_file_name(chunk.rank, index),
                position - chunk.start - begin,
                position - index * file_size,
                end - index * file_size,
            )
        )
        position = end
    return cuts


def read_exactly(descriptor: int, target: memoryview, offset: int, path: Path) -> None:
    """Fill the target with a file's bytes from an offset on.

    Raises:
        DamagedCheckpointError: It ends before, or cannot be read.
    """
    try:
        _read_into(descriptor, target, offset, path, None)
    except OSError as error:
        raise DamagedCheckpointError(f"{path} cannot be read: {error.strerror}") from error


def read_file(path: Path, expected: StoredFile, spans: list[Span], *, verify: bool) -> None:
    """Read spans of one file, and hash all of it on the way if this rank verifies it.

    Args:
        path: The file; a link is refused.
        expected: Its size and hash by the manifest.
        spans: Sorted by offset; bytes outside them are read only to be hashed.
        verify: Whether to hash.

    Raises:
        DamagedCheckpointError: Missing, of another size, unreadable, or of another hash.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise DamagedCheckpointError(f"{path} must be a readable file; {error.strerror}") from error
    try:
        require_size(path, descriptor, expected.size)
        if not verify:
            for span in spans:
                _read_into(descriptor, span.target, span.offset, path, None)
            return
        digest = hashlib.sha256()
        scratch = memoryview(bytearray(PIECE_BYTES))
        position = 0
        for span in spans:
            if span.offset < position:  # a byte that goes to two places was hashed with the first
                _read_into(descriptor, span.target, span.offset, path, None)
                continue
            _skip(descriptor, scratch, position, span.offset, path, digest)
            _read_into(descriptor, span.target, span.offset, path, digest)
            position = span.offset + span.target.nbytes
        _skip(descriptor, scratch, position, expected.size, path, digest)
        if digest.hexdigest() != expected.sha256:
            raise DamagedCheckpointError(
                f"{path} has SHA-256 {digest.hexdigest()}, which must equal the manifest's {expected.sha256}"
            )
    except OSError as error:
        raise DamagedCheckpointError(f"{path} cannot be read: {error.strerror}") from error
    finally:
        os.close(descriptor)


def require_size(path: Path, descriptor: int, size: int) -> None:
    """Refuse an open file that is no regular file of this many bytes.

    Raises:
        DamagedCheckpointError: It is not.
    """
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode) or status.st_size != size:
        raise DamagedCheckpointError(f"{path} has {status.st_size} bytes, which must equal the manifest's {size}")


def _read_into(descriptor: int, target: memoryview, offset: int, path: Path, digest: Any) -> None:
    done = 0
    while done < target.nbytes:
        piece = target[done : done + PIECE_BYTES]
        count = os.preadv(descriptor, [piece], offset + done)
        if count == 0:
            raise DamagedCheckpointError(f"{path} ends at byte {offset + done} while it is read")
        if digest is not None:
            digest.update(piece[:count])
        done += count


def _skip(descriptor: int, scratch: memoryview, begin: int, end: int, path: Path, digest: Any) -> None:
    """Hash the bytes nobody needs."""
    while begin < end:
        piece = scratch[: min(PIECE_BYTES, end - begin)]
        _read_into(descriptor, piece, begin, path, digest)
        begin += piece.nbytes
