"""An optimizer that goes on from the state of another run's."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modlib.components import component
from modlib.runtime.errors import ConfigError

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer


@component("optimizer", "checkpointed", runtime_args=("params",))
def CheckpointedOptimizer(params: Any, optimizer: Callable[[Any], Any], checkpoint_path: str) -> Optimizer:
    """An optimizer with the moments and step counts of a checkpoint of this library, by parameter name.

    Its settings (learning rate, betas, ...) are those of the configuration. Belongs with a model that starts from the
    same checkpoint (CheckpointedModel). A run that resumes from a checkpoint of its own takes that one's state.

    Args:
        params: Parameter groups; passed by training.
        optimizer: Returns the optimizer, of the class that was saved.
        checkpoint_path: A checkpoint, or a run's or checkpoints folder, which stands for its newest complete
            checkpoint; looked for at once, read when the model has memory.

    Raises:
        ConfigError: There is nothing at checkpoint_path.
        CheckpointError: (When it is read) its state is of another optimizer or other parameters.
    """
    path = Path(checkpoint_path).expanduser()
    if not path.is_dir():
        raise ConfigError(f"checkpoint_path ('{checkpoint_path}') must be a folder; there is none at {path.absolute()}")
    built: Optimizer = optimizer(params)
    built.restore_state = partial(_restore, built, optimizer, path)  # type: ignore[attr-defined]
    return built


def _restore(optimizer: Optimizer, build: Callable[..., Any], path: Path, model: nn.Module) -> None:
    from modlib.checkpointing.warm_start import load_optimizer

    load_optimizer(path, model=model, optimizer=optimizer, entries=_entries(optimizer, build))


def _entries(optimizer: Optimizer, build: Callable[..., Any]) -> set[str]:
    """What the optimizer keeps for a parameter, found by one update of small stand-ins with the same settings."""
    import torch

    groups = []
    for group in optimizer.param_groups:
        small = [torch.nn.Parameter(torch.zeros([min(size, 2) for size in p.shape])) for p in group["params"][:1]]
        groups.append({**group, "params": small})
    probe = build(groups)
    for group in probe.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    probe.step()
    return {entry for state in probe.state.values() for entry, value in state.items() if value is not None}
