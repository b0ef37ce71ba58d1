"""Writing: torch's distributed checkpoint plans who saves what; the bytes go to the disk straight from the tensors."""

from __future__ import annotations

import bisect
import hashlib
import itertools
import math
import mmap
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex, TensorStorageMetadata
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner, WriteItem, WriteItemType
from torch.distributed.checkpoint.storage import StorageWriter, WriteResult
from torch.futures import Future

from modlib.checkpointing.commit import commit
from modlib.checkpointing.manifest import (
    Chunk,
    Manifest,
    StoredFile,
    StoredTensor,
    Stream,
    data_file_name,
    rank_file_name,
)
from modlib.checkpointing.names import MANIFEST
from modlib.checkpointing.state import dtype_name
from modlib.runtime import durable, faults
from modlib.runtime.errors import CheckpointError, NonFiniteError

ALIGNMENT = 64
PIECE_BYTES = 1 << 20  # small enough to be copied, checked and hashed while in the CPU's cache
MIN_FILE_BYTES = 8 << 20
MAX_FILE_BYTES = 256 << 20
FILES_PER_THREAD = 4

RANK_TABLE = MetadataIndex("!files")
"""Index of the one result per rank that is not a tensor: its files and stream."""


@dataclass(frozen=True)
class RankFiles:
    """What one rank wrote: its files, and its stream of tensor bytes."""

    rank: int
    files: dict[str, StoredFile]
    stream: Stream


@dataclass(frozen=True)
class Placed:
    """A tensor's bytes and where they begin in the rank's stream.

    Args:
        key: Of the tensor.
        start: In the stream.
        size: Number of its bytes.
        dtype: Of its values.
        read: (begin, end) -> these of its bytes; called from several threads, each going forward.
    """

    key: str
    start: int
    size: int
    dtype: torch.dtype
    read: Callable[[int, int], np.ndarray]


class RawWriter(StorageWriter):
    """Writes a rank's tensors as raw bytes with several threads, each hashing what it writes, and commits at the end.

    Args:
        path: The directory to write aside into; it exists.
        header: Manifest of this save without files, streams and tensors; the first rank completes it.
        finite: Keys that are refused if they hold NaN or Inf.
        rank_state: This rank's own file, as JSON bytes.
        num_threads: Threads that hash and write.
    """

    def __init__(
        self, path: Path, header: Manifest, finite: frozenset[str], rank_state: bytes, num_threads: int
    ) -> None:
        self.path = path
        self.header = header
        self.finite = finite
        self.rank_state = rank_state
        self.num_threads = num_threads
        self.rank = 0
        self.num_bytes = 0

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """Nothing is kept between saves; a writer is made for each."""

    def set_up_storage_writer(self, is_coordinator: bool, *_: Any, **kwargs: Any) -> None:  # noqa: ARG002  torch's
        """Learn this process's rank."""
        self.rank = kwargs.get("rank", 0)

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        """Plans stay as they are."""
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """Plans stay as they are."""
        return plans

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Write this rank's part and return where each tensor went."""
        placed = _place(plan, planner)
        table = self.write_stream([entry for _, entry in placed])
        results = [WriteResult(item.index, entry.size, (self.rank, entry.start)) for item, entry in placed]
        results.append(WriteResult(RANK_TABLE, 0, table))
        future: Future[list[WriteResult]] = Future()
        future.set_result(results)
        return future

    def write_stream(self, placed: list[Placed]) -> RankFiles:
        """Write this rank's tensors, in the order of their places, and its own file."""
        size = placed[-1].start + placed[-1].size if placed else 0
        stream = Stream(size, file_bytes(size, self.num_threads))
        files = self._write_stream(placed, stream)
        name = rank_file_name(self.rank)
        durable.write_new_file(self.path / name, self.rank_state)
        files[name] = StoredFile(len(self.rank_state), hashlib.sha256(self.rank_state).hexdigest())
        durable.fsync_directory(self.path)
        return RankFiles(self.rank, files, stream)

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Write the manifest and commit; runs on the first rank, after all ranks have written."""
        flat = [result for rank_results in results for result in rank_results]
        tables: list[RankFiles] = [result.storage_data for result in flat if result.index.fqn == RANK_TABLE.fqn]
        places = {result.index: result.storage_data for result in flat}
        self.complete(tables, {key: _stored(key, entry, places) for key, entry in metadata.state_dict_metadata.items()})

    def complete(self, tables: Sequence[RankFiles], tensors: dict[str, StoredTensor]) -> None:
        """Write the manifest of what all ranks wrote, and commit."""
        manifest = replace(
            self.header,
            files={name: file for table in tables for name, file in table.files.items()},
            streams={table.rank: table.stream for table in tables},
            tensors=tensors,
        )
        faults.point("ckpt.before_manifest", str(self.path))
        durable.write_new_file(self.path / MANIFEST, manifest.to_bytes())
        durable.fsync_directory(self.path)
        self.num_bytes = manifest.num_bytes
        commit(self.path, manifest.step)

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:  # noqa: ARG003  torch's
        """Never asked: the writer is passed itself, not found by a path."""
        return False

    def _write_stream(self, placed: list[Placed], stream: Stream) -> dict[str, StoredFile]:
        stop = threading.Event()
        names = [data_file_name(self.rank, index) for index in range(-(-stream.size // stream.file_size))]

        def write(index: int) -> StoredFile:
            begin = index * stream.file_size
            end = min(begin + stream.file_size, stream.size)
            try:
                return self._write_file(self.path / names[index], placed, begin, end, stop)
            except BaseException:
                stop.set()  # the other threads need not finish a save that has failed
                raise

        with ThreadPoolExecutor(self.num_threads, thread_name_prefix="checkpoint") as threads:
            futures = [threads.submit(write, index) for index in range(len(names))]
        # the first failure in time, not in file order: later ones may only be "stopped"
        errors = [error for future in futures if (error := future.exception()) is not None]
        for error in sorted(errors, key=lambda error: isinstance(error, _StoppedError)):
            raise error
        return {name: future.result() for name, future in zip(names, futures, strict=True)}

    def _write_file(self, path: Path, placed: list[Placed], begin: int, end: int, stop: threading.Event) -> StoredFile:
        digest = hashlib.sha256()
        # Direct writes want page-aligned memory, which tensors are not; the copy stays in the CPU's cache, and costs
        # far less than filling the page cache with bytes nobody will read.
        buffer = np.frombuffer(mmap.mmap(-1, PIECE_BYTES), dtype=np.uint8)
        descriptor = durable.create_file(path, direct=True)
        try:
            for position in range(begin, end, PIECE_BYTES):
                if stop.is_set():
                    raise _StoppedError
                faults.point("ckpt.shard.write", str(path))
                piece = buffer[: min(PIECE_BYTES, end - position)]
                self._fill(piece, placed, position)
                digest.update(piece.data)
                if piece.nbytes % durable.DIRECT_ALIGNMENT:
                    durable.set_direct(descriptor, False)
                durable.write_all(descriptor, piece.data, position - begin, path)
            durable.fsync_file(descriptor, path)
        finally:
            os.close(descriptor)
        return StoredFile(end - begin, digest.hexdigest())

    def _fill(self, piece: np.ndarray, placed: list[Placed], position: int) -> None:
        """Copy a range of the stream, gaps as zeros, and refuse NaN and Inf on the way."""
        end, filled = position + piece.nbytes, position
        first = bisect.bisect_right(placed, position, key=lambda entry: entry.start)
        for entry in itertools.islice(placed, max(0, first - 1), None):
            if entry.start >= end:
                break
            low, high = max(entry.start, position), min(entry.start + entry.size, end)
            if low >= high:
                continue
            piece[filled - position : low - position] = 0
            part = piece[low - position : high - position]
            filled = high
            np.copyto(part, entry.read(low - entry.start, high - entry.start))
            if entry.key in self.finite and not _all_finite(part, entry.dtype):
                raise NonFiniteError(
                    f"{entry.key.removeprefix('model.')} must be finite to be saved; it holds NaN or Inf, so nothing "
                    "was committed; earlier checkpoints are kept"
                )
        piece[filled - position :] = 0


class _StoppedError(RuntimeError):
    """Another thread of this save failed."""


def file_bytes(size: int, num_threads: int) -> int:
    """Size of a stream's files: enough of them to keep all threads busy, few enough for a parallel file system."""
    share = -(-size // (num_threads * FILES_PER_THREAD))
    whole_pieces = -(-share // PIECE_BYTES) * PIECE_BYTES
    return min(max(whole_pieces, MIN_FILE_BYTES), MAX_FILE_BYTES)


def bytes_of(tensor: Tensor) -> np.ndarray:
    """A contiguous CPU tensor's memory, without a copy."""
    return tensor.reshape(-1).view(torch.uint8).numpy()


def _place(plan: SavePlan, planner: SavePlanner) -> list[tuple[WriteItem, Placed]]:
    placed: list[tuple[WriteItem, Placed]] = []
    start = 0
    for item in plan.items:
        assert item.type != WriteItemType.BYTE_IO, item.index.fqn
        tensor = planner.resolve_data(item)
        assert isinstance(tensor, Tensor)
        data = bytes_of(tensor.detach().cpu().contiguous())
        placed.append((item, Placed(item.index.fqn, start, data.nbytes, tensor.dtype, partial(_part, data))))
        start = next_start(start, data.nbytes)
    return placed


def next_start(start: int, size: int) -> int:
    """Where the tensor after one of `size` bytes begins in the stream."""
    return start + -(-size // ALIGNMENT) * ALIGNMENT


def _part(data: np.ndarray, begin: int, end: int) -> np.ndarray:
    return data[begin:end]


def _all_finite(part: np.ndarray, dtype: torch.dtype) -> bool:
    if not (dtype.is_floating_point or dtype.is_complex):
        return True
    if dtype == torch.bfloat16:
        exponent = part.view(np.uint16) & 0x7F80
        return not bool((exponent == 0x7F80).any())
    if dtype in (torch.float16, torch.float32, torch.float64, torch.complex64, torch.complex128):
        values = part.view(dtype_name(dtype))
        with np.errstate(all="ignore"):
            # A sum is one fast pass; NaN and Inf always reach it. It may also overflow by itself: then look closely.
            return bool(np.isfinite(values.sum())) or bool(np.isfinite(values).all())
    small = torch.from_numpy(part).view(dtype).float()
    return bool(torch.isfinite(small).all())


def _stored(key: str, entry: Any, places: dict[MetadataIndex, tuple[int, int]]) -> StoredTensor:
    assert isinstance(entry, TensorStorageMetadata), key
    chunks = []
    for index, chunk in enumerate(entry.chunks):
        rank, start = places[MetadataIndex(key, chunk.offsets, index)]
        chunks.append(Chunk(tuple(chunk.offsets), tuple(chunk.sizes), rank, start))
    if sum(math.prod(chunk.sizes) for chunk in chunks) != math.prod(entry.size):
        raise CheckpointError(
            f"{key} has parts that do not make up its shape {tuple(entry.size)}; its sharding is not supported"
        )
    return StoredTensor(dtype_name(entry.properties.dtype), tuple(entry.size), tuple(chunks))
