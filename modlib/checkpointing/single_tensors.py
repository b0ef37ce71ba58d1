"""The model's tensors of a checkpoint one at a time, for who cannot or need not hold them all.

Files are hashed in other threads meanwhile, so what was read counts only once `finish` has returned.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from types import TracebackType
from typing import Self

import torch
from torch import Tensor, nn

from modlib.checkpointing.coordination import Ranks
from modlib.checkpointing.loading import Checkpoint
from modlib.checkpointing.manifest import Chunk, DamagedCheckpointError, StoredTensor
from modlib.checkpointing.raw_reader import byte_cuts, read_exactly, read_file
from modlib.checkpointing.raw_writer import bytes_of
from modlib.checkpointing.state import capture
from modlib.checkpointing.strictness import require_fit
from modlib.checkpointing.writing import num_threads
from modlib.runtime.file_spans import FileSpan

ALL = slice(None)


class CheckpointTensors:
    """Reads whole tensors, or rows of them, of a checkpoint's model; a context, since it keeps files open.

    Args:
        checkpoint: Whose files have the right sizes.
        model: What it must fit; may be on meta. A tensor is found under each of its tied names.

    Raises:
        CheckpointError: It does not fit the model; all differences are listed.
    """

    def __init__(self, checkpoint: Checkpoint, model: nn.Module) -> None:
        self._path, self._manifest = checkpoint.path, checkpoint.manifest
        state = capture(model, None, None)
        require_fit(self._manifest, state, checkpoint.path.name)
        self._keys = {key.removeprefix("model."): key for key in state.tensors}
        self._keys |= {alias.removeprefix("model."): key for alias, key in state.aliases.items()}
        self._opened = ExitStack()
        self._descriptors: dict[str, int] = {}
        self._hashing: list[Future[None]] = []

    def __enter__(self) -> Self:
        threads = ThreadPoolExecutor(num_threads(Ranks(), per_processor=1), thread_name_prefix="checkpoint")
        self._opened.callback(threads.shutdown, wait=True, cancel_futures=True)
        for name in self._files():
            expected = self._manifest.files[name]
            self._hashing.append(threads.submit(read_file, self._path / name, expected, [], verify=True))
        return self

    def __exit__(self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None) -> None:
        self._opened.close()

    def __contains__(self, name: str) -> bool:
        return name in self._keys

    def read(self, name: str, rows: slice = ALL) -> Tensor:
        """One tensor, or these rows of it.

        Args:
            name: In the model.
            rows: Of the first dimension, without a step.

        Raises:
            DamagedCheckpointError: A file ends too early or cannot be read.
        """
        stored = self._manifest.tensors[self._keys[name]]
        begin, end, _ = rows.indices(stored.shape[0]) if stored.shape else (0, 1, 1)
        shape = (end - begin, *stored.shape[1:]) if stored.shape else ()
        whole = torch.empty(shape, dtype=getattr(torch, stored.dtype))
        for chunk in stored.chunks:
            self._read_chunk(stored, chunk, whole, begin, end)
        return whole

    def spans(self, name: str) -> list[FileSpan] | None:
        """Where the bytes of a whole tensor are, in order; None where its chunks are not rows after rows.

        Raises:
            DamagedCheckpointError: A file cannot be opened.
        """
        stored = self._manifest.tensors[self._keys[name]]
        chunks = sorted(stored.chunks, key=lambda chunk: chunk.offsets)
        if any(chunk.sizes[1:] != stored.shape[1:] for chunk in chunks):
            return None
        return [
            FileSpan(self._descriptor(file), start, end - start)
            for chunk in chunks
            for file, _, start, end in byte_cuts(self._manifest, chunk, 0, _row_bytes(stored, chunk) * _rows(chunk))
        ]

    def finish(self) -> None:
        """Wait until all files are hashed.

        Raises:
            DamagedCheckpointError: One is not what was saved.
        """
        for done in self._hashing:
            done.result()

    def _files(self) -> Iterator[str]:
        """Those with the model's tensors, each once, in order."""
        seen: dict[str, None] = {}
        for key in dict.fromkeys(self._keys.values()):
            stored = self._manifest.tensors[key]
            for chunk in stored.chunks:
                for name, *_ in byte_cuts(self._manifest, chunk, 0, _row_bytes(stored, chunk) * _rows(chunk)):
                    seen.setdefault(name)
        yield from seen

    def _read_chunk(self, stored: StoredTensor, chunk: Chunk, whole: Tensor, begin: int, end: int) -> None:
        """Copy the rows that a chunk has of those wanted."""
        if not chunk.sizes:
            self._read_bytes(chunk, 0, whole)
            return
        first, last = max(begin, chunk.offsets[0]), min(end, chunk.offsets[0] + chunk.sizes[0])
        if first >= last:
            return
        target = whole[first - begin : last - begin]
        for dim in range(1, whole.ndim):
            target = target.narrow(dim, chunk.offsets[dim], chunk.sizes[dim])
        offset = (first - chunk.offsets[0]) * _row_bytes(stored, chunk)
        if target.is_contiguous():
            self._read_bytes(chunk, offset, target)
        else:
            part = torch.empty_like(target, memory_format=torch.contiguous_format)
            self._read_bytes(chunk, offset, part)
            target.copy_(part)

    def _read_bytes(self, chunk: Chunk, offset: int, target: Tensor) -> None:
        memory = bytes_of(target).data
        for name, before, start, end in byte_cuts(self._manifest, chunk, offset, memory.nbytes):
            read_exactly(self._descriptor(name), memory[before : before + end - start], start, self._path / name)

    def _descriptor(self, name: str) -> int:
        if name not in self._descriptors:
            path = self._path / name
            try:
                descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
            except OSError as error:
                raise DamagedCheckpointError(f"{path} must be a readable file; {error.strerror}") from error
            self._opened.callback(os.close, descriptor)
            self._descriptors[name] = descriptor
        return self._descriptors[name]


def _rows(chunk: Chunk) -> int:
    return chunk.sizes[0] if chunk.sizes else 1


def _row_bytes(stored: StoredTensor, chunk: Chunk) -> int:
    width = getattr(torch, stored.dtype).itemsize
    for size in chunk.sizes[1:]:
        width *= size
    return int(width)
