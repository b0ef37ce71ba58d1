"""A model from a folder that `modlib import` made: its weights, and what the folder it came from says beside them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from modlib.checkpointing.model_loading import FSDPCheckpointLoading
from modlib.checkpointing.names import step_name
from modlib.components import component
from modlib.models.wrappers import CheckpointedModel
from modlib.runtime.errors import ConfigError

CHECKPOINTS, MODEL_GIN = "checkpoints", "model.gin"
IMPORTED_STEP = 0


@component("model", "imported")
def ImportedModel(model: Callable[[], Any], folder: str) -> nn.Module:
    """A model that starts from the weights of a folder made by `modlib import`; export keeps what it says beside them.

    Names stay the inner model's.

    Args:
        model: Returns the model, of the sizes that the folder's model.gin gives.
        folder: Made by `modlib import`; relative to the working directory.

    Raises:
        ConfigError: There is no such folder.
        CheckpointError: (When it is read) it does not fit the model or is damaged.
    """
    place = Path(folder).expanduser()
    checkpoint = place / CHECKPOINTS / step_name(IMPORTED_STEP)
    if not checkpoint.is_dir():
        raise ConfigError(
            f"folder ('{folder}') must be one that modlib import made; there is no {checkpoint.absolute()}; if the "
            "folder was moved, name its new place in IMPORTED"
        )
    built: Any = CheckpointedModel(model, str(checkpoint), FSDPCheckpointLoading)
    built.base_folder = place
    return built
