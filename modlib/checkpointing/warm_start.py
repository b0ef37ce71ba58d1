"""A part of another run's checkpoint for this run: its model's weights, or its optimizer's state."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from modlib.checkpointing.commit import LOGGER
from modlib.checkpointing.coordination import Ranks
from modlib.checkpointing.loading import Checkpoint, complete_checkpoints, read_tensors, share
from modlib.checkpointing.manifest import DamagedCheckpointError
from modlib.checkpointing.names import MANIFEST
from modlib.checkpointing.state import TrainingState, capture, stage
from modlib.checkpointing.strictness import require_fit, require_optimizer_fit
from modlib.distributed.local_part import local_part
from modlib.runtime.errors import CheckpointError


def load_weights(path: Path | str, tensors: Mapping[str, Tensor], group: dist.ProcessGroup | None = None) -> Path:
    """Read a checkpoint's model into live tensors, which change only once every byte is verified.

    All ranks call it together, each with its shards of the same tensors.

    Args:
        path: A checkpoint, or a run's or checkpoints folder, which stands for its newest undamaged checkpoint.
        tensors: Name in the model -> where to put it; exactly those that were saved, a tied one under any of its names.
        group: As of `load`.

    Returns:
        The checkpoint that was read.

    Raises:
        CheckpointError: Other names, shapes or dtypes than were saved; all are listed.
        DamagedCheckpointError: The checkpoint is not what was saved.
    """
    ranks = Ranks(group)

    def read(checkpoint: Checkpoint) -> None:
        aliases = checkpoint.manifest.aliases
        keys = {name: aliases.get(f"model.{name}", f"model.{name}") for name in tensors}
        state = TrainingState({key: tensors[name] for name, key in keys.items()})
        ranks.agree(lambda: require_fit(replace(checkpoint.manifest, aliases={}), state, checkpoint.path.name))
        staged = {key: torch.empty_like(tensor, requires_grad=False) for key, tensor in state.tensors.items()}
        read_tensors(checkpoint, staged, ranks)
        with torch.no_grad():
            for name, key in keys.items():
                local_part(tensors[name])[0].copy_(local_part(staged[key])[0])

    return _from_newest(Path(path), ranks, read)


def load_optimizer(
    path: Path | str,
    *,
    model: nn.Module,
    optimizer: Optimizer,
    entries: Collection[str],
    group: dist.ProcessGroup | None = None,
) -> Path:
    """Take over the optimizer's state (moments, step counts) from a checkpoint; its settings stay as they are.

    All ranks call it together.

    Args:
        path: A checkpoint, or a run's or checkpoints folder, which stands for its newest undamaged checkpoint.
        model: The one whose parameters the optimizer has.
        optimizer: Of the class that was saved, with the same parameters.
        entries: Names of the state that this optimizer keeps for a parameter, such as "exp_avg".
        group: As of `load`.

    Returns:
        The checkpoint that was read.

    Raises:
        CheckpointError: It has no state for this optimizer's class, settings and parameters.
        DamagedCheckpointError: The checkpoint is not what was saved.
    """
    ranks = Ranks(group)

    def read(checkpoint: Checkpoint) -> None:
        manifest, name = checkpoint.manifest, checkpoint.path.name
        ranks.agree(lambda: require_optimizer_fit(manifest, capture(model, optimizer, None), entries, name))
        staged = stage(manifest, model, optimizer, None, only_moments=True)
        read_tensors(checkpoint, staged.tensors, ranks)
        staged.commit()

    return _from_newest(Path(path), ranks, read)


def _from_newest(path: Path, ranks: Ranks, read: Callable[[Checkpoint], None]) -> Path:
    """Read the checkpoint that a path names, or the newest of a folder that turns out to be undamaged."""
    folder = path / "checkpoints" if (path / "checkpoints").is_dir() else path
    damaged: list[str] = []
    excluded: set[int] = set()
    while True:
        found = b""
        if ranks.first and (path / MANIFEST).exists():
            found = str(path).encode()
        elif ranks.first:  # another run's folder is only looked at: nothing in it is tidied up
            candidates = (checkpoint for checkpoint in complete_checkpoints(folder) if checkpoint.step not in excluded)
            found = next((str(checkpoint.path).encode() for checkpoint in candidates), b"")
        chosen = ranks.broadcast(found).decode()
        if not chosen:
            raise CheckpointError(
                f"{path} must be a checkpoint, or a run folder with an undamaged one; there is none in {folder}"
                + "".join(f"\n  {text}" for text in damaged)
            )
        checkpoint = share(Path(chosen), ranks)
        try:
            read(checkpoint)
            return checkpoint.path
        except DamagedCheckpointError as error:
            if checkpoint.path == path:
                raise
            excluded.add(checkpoint.step)
            damaged.append(str(error))
            if ranks.first:
                LOGGER.warning("checkpoint %s is damaged and skipped: %s", checkpoint.path.name, error)
