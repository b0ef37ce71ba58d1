"""Saving: one checkpoint from all ranks, complete and verified, or none at all."""

from __future__ import annotations

import json
import os
import platform
import sys
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn
from uuid import uuid4

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from modlib.checkpointing.commit import LOGGER, recover, require_space, write_error
from modlib.checkpointing.coordination import Ranks
from modlib.checkpointing.manifest import Manifest
from modlib.checkpointing.names import aside_name, step_name
from modlib.checkpointing.plain import encode
from modlib.checkpointing.raw_writer import RawWriter
from modlib.checkpointing.state import TrainingState, capture
from modlib.optim.schedules import Scheduler
from modlib.runtime import durable
from modlib.runtime.errors import CheckpointError, NonFiniteError
from modlib.version import VERSION


@dataclass(frozen=True)
class SavedCheckpoint:
    """A committed checkpoint: its directory, the bytes of its files and the seconds its save took."""

    path: Path
    bytes: int
    seconds: float


def save(
    run_checkpoints: Path | str,
    *,
    step: int,
    model: nn.Module,
    optimizer: Optimizer | None = None,
    scheduler: Scheduler | None = None,
    extra: Mapping[str, Any] | None = None,
    rank_state: Mapping[str, Any] | None = None,
    group: dist.ProcessGroup | None = None,
    info: Mapping[str, Any] | None = None,
    threads_per_processor: int = 4,
) -> SavedCheckpoint:
    """Save a checkpoint of a step; when this returns, it is on the disk and verified, whatever happens next.

    All ranks call it together. It replaces an existing checkpoint of the same step only once it is complete.

    Args:
        run_checkpoints: The checkpoints folder of the run; created if it is missing.
        step: Optimizer steps done.
        model: Plain, or sharded with FSDP2 over any ranks.
        optimizer: Its parameters must be the model's. None: not saved.
        scheduler: None: not saved.
        extra: State of the whole run that is no tensor, JSON-able; the first rank's is saved.
        rank_state: State of this rank, e.g. `capture_rng()`, JSON-able; every rank's is saved.
        group: A gloo group of all ranks that nothing else uses. None: one is made.
        info: A description to keep beside it (config hash, layout, ...), JSON-able.
        threads_per_processor: Writing threads for each processor of this rank; at least 2 and at most 16 in all.

    Raises:
        CheckpointError: On every rank, if any rank failed (disk full, ...); nothing was committed, what was written is
            removed and older checkpoints are untouched.
        NonFiniteError: Likewise, for NaN or Inf in the parameters or the optimizer's state.
    """
    started = time.monotonic()
    ranks = Ranks(group)
    folder = Path(run_checkpoints)

    def prepare() -> tuple[TrainingState, dict[str, Any], dict[str, Any]]:
        if type(step) is not int or step < 0:
            raise CheckpointError(
                f"step ({step!r}) must be an int of at least 0; pass the number of optimizer steps done"
            )
        state = capture(model, optimizer, scheduler)
        return state, encode(dict(extra or {}), "extra"), encode(dict(rank_state or {}), "rank_state")

    state, plain_extra, plain_rank_state = ranks.agree(prepare)
    needed = ranks.sum(_local_bytes(state, ranks))
    save_id, aside = open_aside(folder, step, needed, ranks)
    header = Manifest(
        save_id=save_id,
        step=step,
        world_size=ranks.size,
        files={},
        streams={},
        tensors={},
        aliases=state.aliases,
        optimizer=state.optimizer,
        scheduler=state.scheduler,
        extra=plain_extra,
        info=encode(dict(info or {}), "info"),
        versions={"modlib": VERSION, "torch": torch.__version__, "python": platform.python_version()},
    )
    own = json.dumps({"save_id": save_id, "rank": ranks.rank, "rank_state": plain_rank_state}).encode()
    writer = RawWriter(aside, header, state.finite, own, num_threads(ranks, threads_per_processor))
    try:
        with quiet():
            dcp.save(
                state.tensors,
                storage_writer=writer,
                planner=DefaultSavePlanner(flatten_state_dict=False, flatten_sharded_tensors=False),
                process_group=ranks.group,
                no_dist=ranks.group is None,
            )
    except CheckpointException as failure:
        if ranks.first:
            remove_partial(aside)
        raise_failure(failure, ranks, folder / step_name(step), needed)
    total = ranks.sum(writer.num_bytes)
    return SavedCheckpoint(folder / step_name(step), total, time.monotonic() - started)


def num_threads(ranks: Ranks, per_processor: int) -> int:
    """Threads of this rank: several for each of its share of the processors, as most of them wait for the disk."""
    local_ranks = int(os.environ.get("LOCAL_WORLD_SIZE", ranks.size))
    processors = len(os.sched_getaffinity(0))
    return max(2, min(16, per_processor * processors // max(1, local_ranks)))


@contextmanager
def quiet() -> Iterator[None]:
    """Without torch's warning that a single process saves or loads by itself."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield


def raise_failure(failure: CheckpointException, ranks: Ranks, path: Path, needed: int | None = None) -> NoReturn:
    """Turn the errors of all ranks into the one that a user can act on, the lowest rank's, on every rank.

    Raises:
        CheckpointError, NonFiniteError: Always, unless this rank was interrupted (then that is raised again).
    """
    own = failure.failures.get(ranks.rank)
    if own is not None and not isinstance(own[0], Exception):
        raise own[0]
    rank, (cause, _) = min(failure.failures.items(), key=lambda entry: entry[0])
    where = f"rank {rank}: " if ranks.size > 1 else ""
    if isinstance(cause, CheckpointError | NonFiniteError):
        raise type(cause)(f"{where}{cause}") from cause
    if isinstance(cause, OSError):
        raise CheckpointError(f"{where}{write_error(path, cause, needed)}") from cause
    raise CheckpointError(f"{where}checkpoint {path}: {type(cause).__name__}: {cause}") from cause


def _local_bytes(state: TrainingState, ranks: Ranks) -> int:
    """Bytes this rank will about write: its shards; what every rank has in full is counted once."""
    total = 0
    for tensor in state.tensors.values():
        if isinstance(tensor, DTensor):
            total += tensor.to_local().nbytes
        elif ranks.first:
            total += tensor.nbytes
    return total


def open_aside(folder: Path, step: int, needed: int, ranks: Ranks) -> tuple[str, Path]:
    """Make the directory to write into, after checking the space; every rank learns its name and the save's id."""
    error: Exception | None = None
    names = ["", ""]
    if ranks.first:
        try:
            if sys.byteorder != "little":
                raise CheckpointError("byte order (big) must be little; checkpoints are raw little-endian bytes")
            folder.mkdir(exist_ok=True)  # its run folder is there, or was taken away
            require_space(folder, needed)
            names = [uuid4().hex, aside_name("tmp", step)]
            durable.make_directory(folder / names[1])
        except OSError as caught:
            error = write_error(folder / step_name(step), caught)
        except CheckpointError as caught:
            error = caught
    ranks.raise_first(error)
    save_id, name = ranks.broadcast("\n".join(names).encode()).decode().split("\n")
    return save_id, folder / name


def remove_partial(aside: Path) -> None:
    """Remove what a save that failed left behind; never raises."""
    try:
        if aside.exists():
            durable.remove_tree(aside)
        recover(aside.parent)
    except OSError as error:
        LOGGER.warning("partial checkpoint %s could not be removed: %s", aside, error)
