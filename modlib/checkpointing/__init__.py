"""Checkpoints: complete and verified, or not there at all.

    saved = save(run.checkpoints_path, step=100, model=model, optimizer=optimizer, scheduler=scheduler,
                 extra={"position": 100}, rank_state=capture_rng())
    restored = restore_newest(run.checkpoints_path, model=model, optimizer=optimizer, scheduler=scheduler)

Importing this package imports no torch; its functions do when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from modlib.checkpointing.commit import clean, preflight
    from modlib.checkpointing.loading import (
        Checkpoint,
        LoadedState,
        load,
        newest,
        restore_newest,
        verify,
    )
    from modlib.checkpointing.manifest import DamagedCheckpointError
    from modlib.checkpointing.model_loading import FSDPCheckpointLoading, TorchCheckpointLoading
    from modlib.checkpointing.rng import capture_rng, restore_rng
    from modlib.checkpointing.saving import CheckpointSaving, FSDPCheckpointSaving
    from modlib.checkpointing.strategies import SaveEveryKSteps, SaveKMostRecent
    from modlib.checkpointing.warm_start import load_optimizer, load_weights
    from modlib.checkpointing.writing import SavedCheckpoint, save

_HOMES = {
    "Checkpoint": "loading",
    "CheckpointSaving": "saving",
    "DamagedCheckpointError": "manifest",
    "FSDPCheckpointLoading": "model_loading",
    "FSDPCheckpointSaving": "saving",
    "LoadedState": "loading",
    "SaveEveryKSteps": "strategies",
    "SaveKMostRecent": "strategies",
    "SavedCheckpoint": "writing",
    "TorchCheckpointLoading": "model_loading",
    "capture_rng": "rng",
    "clean": "commit",
    "load": "loading",
    "load_optimizer": "warm_start",
    "load_weights": "warm_start",
    "newest": "loading",
    "preflight": "commit",
    "restore_newest": "loading",
    "restore_rng": "rng",
    "save": "writing",
    "verify": "loading",
}

__all__ = [
    "Checkpoint",
    "CheckpointSaving",
    "DamagedCheckpointError",
    "FSDPCheckpointLoading",
    "FSDPCheckpointSaving",
    "LoadedState",
    "SaveEveryKSteps",
    "SaveKMostRecent",
    "SavedCheckpoint",
    "TorchCheckpointLoading",
    "capture_rng",
    "clean",
    "load",
    "load_optimizer",
    "load_weights",
    "newest",
    "preflight",
    "restore_newest",
    "restore_rng",
    "save",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
