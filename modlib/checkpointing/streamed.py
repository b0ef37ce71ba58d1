"""A checkpoint of a model that is never whole in memory: its tensors are read while they are written."""

from __future__ import annotations

import json
import math
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from modlib.checkpointing.commit import write_error
from modlib.checkpointing.coordination import Ranks
from modlib.checkpointing.manifest import Chunk, Manifest, StoredTensor
from modlib.checkpointing.names import step_name
from modlib.checkpointing.plain import encode
from modlib.checkpointing.raw_writer import Placed, RawWriter, next_start
from modlib.checkpointing.state import dtype_name
from modlib.checkpointing.writing import SavedCheckpoint, num_threads, open_aside, remove_partial
from modlib.version import VERSION


@dataclass(frozen=True)
class StreamedTensor:
    """One tensor of the model.

    Args:
        name: In the model.
        shape: Of the whole.
        dtype: Of its values.
        read: (begin, end) -> these bytes of it, row-major; called from several threads, begin and end at whole values.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[int, int], np.ndarray]

    @property
    def num_bytes(self) -> int:
        """Of all its values."""
        return math.prod(self.shape) * self.dtype.itemsize


def save_streamed(
    run_checkpoints: Path,
    *,
    step: int,
    tensors: Sequence[StreamedTensor],
    info: Mapping[str, Any] | None = None,
    most_threads: int = 16,
) -> SavedCheckpoint:
    """Save a model's weights, without an optimizer; when this returns, they are on the disk and verified.

    One process calls it. What is in memory is what `read` returns, for each thread.

    Args:
        run_checkpoints: The folder of checkpoints; created if it is missing.
        step: Of the checkpoint.
        tensors: In the order of the file, which is the order in which they are read.
        info: A description to keep beside it, JSON-able.
        most_threads: Threads that read, hash and write.

    Raises:
        CheckpointError: The disk is full, or something cannot be read; nothing was committed.
        NonFiniteError: A tensor holds NaN or Inf.
    """
    started, ranks = time.monotonic(), Ranks()
    placed: list[Placed] = []
    stored: dict[str, StoredTensor] = {}
    start = 0
    for tensor in tensors:
        key = f"model.{tensor.name}"
        placed.append(Placed(key, start, tensor.num_bytes, tensor.dtype, tensor.read))
        chunk = Chunk((0,) * len(tensor.shape), tensor.shape, 0, start)
        stored[key] = StoredTensor(dtype_name(tensor.dtype), tensor.shape, (chunk,))
        start = next_start(start, tensor.num_bytes)
    save_id, aside = open_aside(run_checkpoints, step, start, ranks)
    header = Manifest(
        save_id=save_id,
        step=step,
        world_size=1,
        files={},
        streams={},
        tensors={},
        extra={},
        info=encode(dict(info or {}), "info"),
        versions={"modlib": VERSION, "torch": torch.__version__, "python": platform.python_version()},
    )
    own = json.dumps({"save_id": save_id, "rank": 0, "rank_state": {}}).encode()
    writer = RawWriter(aside, header, frozenset(stored), own, min(most_threads, num_threads(ranks, 4)))
    path = run_checkpoints / step_name(step)
    try:
        writer.complete([writer.write_stream(placed)], stored)
    except OSError as error:
        remove_partial(aside)
        raise write_error(path, error, start) from error
    except BaseException:
        remove_partial(aside)
        raise
    return SavedCheckpoint(path, writer.num_bytes, time.monotonic() - started)
