"""Loading the newest checkpoint that passes verification into a run that it fits exactly."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.optim import Optimizer

from modlib.checkpointing.commit import LOGGER, clean, recover
from modlib.checkpointing.coordination import Ranks
from modlib.checkpointing.manifest import (
    MAX_MANIFEST_BYTES,
    DamagedCheckpointError,
    Manifest,
    parse_manifest,
    rank_file_name,
)
from modlib.checkpointing.names import MANIFEST, step_folders
from modlib.checkpointing.plain import decode
from modlib.checkpointing.raw_reader import RawReader, read_file, require_size
from modlib.checkpointing.state import StagedState, capture, stage
from modlib.checkpointing.strictness import require_fit
from modlib.checkpointing.writing import num_threads, quiet, raise_failure
from modlib.optim.schedules import Scheduler
from modlib.runtime.errors import CheckpointError
from modlib.runtime.json_files import parse_json


@dataclass(frozen=True)
class Checkpoint:
    """A committed checkpoint whose manifest is valid and whose files have the right sizes."""

    path: Path
    manifest: Manifest

    @property
    def step(self) -> int:
        """Optimizer steps done when it was saved."""
        return self.manifest.step

    @property
    def extra(self) -> dict[str, Any]:
        """The run's state that is no tensor, as it was passed to `save`."""
        return _decoded(self.path, self.manifest.extra)

    @property
    def info(self) -> dict[str, Any]:
        """The description that was passed to `save`."""
        return _decoded(self.path, self.manifest.info)


@dataclass(frozen=True)
class LoadedState:
    """What a run continues from.

    Args:
        step: Optimizer steps done.
        extra: The run's state that is no tensor.
        rank_state: What this rank passed to `save`; None when another number of ranks saved.
        path: The checkpoint it came from.
        world_size: Number of ranks that saved.
    """

    step: int
    extra: dict[str, Any]
    rank_state: dict[str, Any] | None
    path: Path
    world_size: int


def open_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint's manifest and compare the sizes of its files: cheap, and enough to tell a complete one.

    Raises:
        DamagedCheckpointError: The manifest is missing or invalid, or a file has another size.
    """
    checkpoint = Checkpoint(path, _parse(path, _manifest_bytes(path)))
    for name, file in checkpoint.manifest.files.items():
        try:
            descriptor = os.open(path / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise DamagedCheckpointError(f"{path / name} must be a readable file; {error.strerror}") from error
        try:
            require_size(path / name, descriptor, file.size)
        finally:
            os.close(descriptor)
    return checkpoint


def complete_checkpoints(folder: Path | str) -> Iterator[Checkpoint]:
    """Every complete checkpoint of a folder, newest first; others are skipped with a message that names the file."""
    for step, path in step_folders(Path(folder)):
        try:
            checkpoint = open_checkpoint(path)
            if checkpoint.step != step:
                raise DamagedCheckpointError(f"{path / MANIFEST} is of step {checkpoint.step}, which must equal {step}")
        except DamagedCheckpointError as error:
            LOGGER.warning("checkpoint %s is skipped: %s", path.name, error)
            continue
        yield checkpoint


def newest(run_checkpoints: Path | str) -> Checkpoint | None:
    """The newest complete checkpoint of a folder, by step; None when there is none.

    Its hashes are verified when it is loaded. One process looks; other ranks are told.
    """
    recover(Path(run_checkpoints))
    return next(complete_checkpoints(run_checkpoints), None)


def verify(path: Path | str) -> list[str]:
    """Hash every file of a checkpoint and return what is wrong with it; empty when nothing is."""
    path = Path(path)
    try:
        checkpoint = open_checkpoint(path)
    except DamagedCheckpointError as error:
        return [str(error)]

    def problem(name: str) -> str | None:
        try:
            read_file(path / name, checkpoint.manifest.files[name], [], verify=True)
        except DamagedCheckpointError as error:
            return str(error)
        return None

    with ThreadPoolExecutor(num_threads(Ranks(), per_processor=2)) as threads:
        return [text for text in threads.map(problem, sorted(checkpoint.manifest.files)) if text is not None]


def load(
    checkpoint: Checkpoint | Path | str,
    *,
    model: nn.Module,
    optimizer: Optimizer | None = None,
    scheduler: Scheduler | None = None,
    group: dist.ProcessGroup | None = None,
) -> LoadedState:
    """Restore one checkpoint; the model changes only after every needed byte is verified on every rank.

    All ranks call it together. The scheduler is built before, since it adds settings to the optimizer's groups.

    Args:
        checkpoint: From `newest`, or the path of one; the first rank's counts.
        model: Of exactly the saved names, shapes and dtypes; sharded in any way.
        optimizer: None: its state is left unread.
        scheduler: None: its state is left unread.
        group: A gloo group of all ranks that nothing else uses. None: one is made.

    Raises:
        DamagedCheckpointError: It is not what was saved; the model is untouched.
        CheckpointError: It does not fit; the model is untouched.
    """
    ranks = Ranks(group)
    path = checkpoint.path if isinstance(checkpoint, Checkpoint) else Path(checkpoint)
    return _load(share(path, ranks), ranks, model, optimizer, scheduler)


def restore_newest(
    run_checkpoints: Path | str,
    *,
    model: nn.Module,
    optimizer: Optimizer | None = None,
    scheduler: Scheduler | None = None,
    group: dist.ProcessGroup | None = None,
) -> LoadedState | None:
    """Restore the newest checkpoint that passes verification; None when there is none, with the model untouched.

    The first rank looks and decides; a damaged checkpoint is named in a message and the one before it is taken.
    Leftovers of interrupted saves are removed. Arguments as of `load`.

    Raises:
        CheckpointError: The newest good checkpoint does not fit this run, or all there are are damaged.
    """
    ranks = Ranks(group)
    folder = Path(run_checkpoints)
    if ranks.first:
        clean(folder)
    damaged: list[str] = []
    excluded: set[int] = set()
    while True:
        found = b""
        if ranks.first:
            candidates = (checkpoint for checkpoint in complete_checkpoints(folder) if checkpoint.step not in excluded)
            checkpoint = next(candidates, None)
            found = b"" if checkpoint is None else checkpoint.path.name.encode()
        name = ranks.broadcast(found).decode()
        if not name:
            break
        path = folder / name
        try:
            return _load(share(path, ranks), ranks, model, optimizer, scheduler)
        except DamagedCheckpointError as error:
            excluded.add(int(name.removeprefix("step-")))
            damaged.append(str(error))
            if ranks.first:
                LOGGER.warning("checkpoint %s is damaged and skipped: %s", name, error)
    remaining = b""
    if ranks.first:
        remaining = ", ".join(path.name for _, path in step_folders(folder)).encode()
    names = ranks.broadcast(remaining).decode()
    if names:
        raise CheckpointError(
            f"checkpoints in {folder} ({names}) must have at least one that is undamaged; move them away to start from "
            "scratch" + "".join(f"\n  {text}" for text in damaged)
        )
    return None


def _load(
    checkpoint: Checkpoint, ranks: Ranks, model: nn.Module, optimizer: Optimizer | None, scheduler: Any
) -> LoadedState:
    path, manifest = checkpoint.path, checkpoint.manifest

    def prepare() -> tuple[StagedState, dict[str, Any], dict[str, Any] | None]:
        require_fit(manifest, capture(model, optimizer, scheduler), path.name)
        rank_state = _rank_state(checkpoint, ranks)
        return stage(manifest, model, optimizer, scheduler), checkpoint.extra, rank_state

    staged, extra, rank_state = ranks.agree(prepare)
    read_tensors(checkpoint, staged.tensors, ranks)
    staged.commit()
    if ranks.first and manifest.world_size != ranks.size:
        LOGGER.info("checkpoint %s of %d ranks was restored on %d", path.name, manifest.world_size, ranks.size)
    return LoadedState(manifest.step, extra, rank_state, path, manifest.world_size)


def read_tensors(checkpoint: Checkpoint, tensors: dict[str, Tensor], ranks: Ranks) -> None:
    """Read and verify these keys into fresh tensors."""
    try:
        with quiet():
            dcp.load(
                tensors,
                storage_reader=RawReader(checkpoint.path, checkpoint.manifest, num_threads(ranks, per_processor=2)),
                planner=DefaultLoadPlanner(flatten_state_dict=False, flatten_sharded_tensors=False),
                process_group=ranks.group,
                no_dist=ranks.group is None,
            )
    except CheckpointException as failure:
        raise_failure(failure, ranks, checkpoint.path)


def share(path: Path, ranks: Ranks) -> Checkpoint:
    """Let the first rank read and check the manifest, and give all ranks the same."""
    error: Exception | None = None
    message = b""
    if ranks.first:
        try:
            open_checkpoint(path)
            message = str(path).encode() + b"\n" + _manifest_bytes(path)
        except CheckpointError as caught:
            error = caught
    ranks.raise_first(error)
    name, _, data = ranks.broadcast(message).partition(b"\n")
    return Checkpoint(Path(name.decode()), _parse(Path(name.decode()), data))


def _manifest_bytes(path: Path) -> bytes:
    manifest = path / MANIFEST
    try:
        descriptor = os.open(manifest, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as file:
            data = file.read(MAX_MANIFEST_BYTES + 1)
    except OSError as error:
        raise DamagedCheckpointError(f"{manifest} must be a readable file; {error.strerror}") from error
    if len(data) > MAX_MANIFEST_BYTES:
        raise DamagedCheckpointError(f"{manifest} has more than {MAX_MANIFEST_BYTES} bytes, which no manifest has")
    return data


def _parse(path: Path, data: bytes) -> Manifest:
    try:
        return parse_manifest(data)
    except ValueError as error:
        raise DamagedCheckpointError(f"{path / MANIFEST} {error}") from error


def _rank_state(checkpoint: Checkpoint, ranks: Ranks) -> dict[str, Any] | None:
    """What this rank saved, verified; None when another number of ranks saved."""
    if checkpoint.manifest.world_size != ranks.size:
        return None
    path = checkpoint.path / rank_file_name(ranks.rank)
    expected = checkpoint.manifest.files.get(path.name)
    if expected is None:
        raise DamagedCheckpointError(f"{path} must be in the manifest")
    try:
        data = path.read_bytes()
        if hashlib.sha256(data).hexdigest() != expected.sha256:
            raise DamagedCheckpointError(f"{path} has another SHA-256 than the manifest says")
        content = parse_json(data, dict[str, Any], place=path.name)
        state = decode(content["rank_state"])
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise DamagedCheckpointError(f"{path} cannot be read: {error}") from error
    if content.get("save_id") != checkpoint.manifest.save_id or not isinstance(state, dict):
        raise DamagedCheckpointError(f"{path} is of another save than its manifest")
    return state


def _decoded(path: Path, value: Any) -> dict[str, Any]:
    try:
        decoded = decode(value)
    except (ValueError, TypeError, RecursionError) as error:
        raise DamagedCheckpointError(f"{path / MANIFEST} has malformed state ({error})") from error
    if not isinstance(decoded, dict):
        raise DamagedCheckpointError(f"{path / MANIFEST} has malformed state")
    return decoded
