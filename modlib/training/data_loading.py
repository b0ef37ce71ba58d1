"""The run's data loader: one rank's batches, for as many steps as the run has."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from modlib.data.batches.layout import BatchLayout
from modlib.training.experiment import Experiment


def build_loader(
    experiment: Experiment,
    dataset: Any,
    collate: Any,
    layout: BatchLayout,
    rank: int,
    call: Callable[..., Any] = lambda choice, **arguments: choice(**arguments),
) -> Any:
    """The data loader of one rank; nothing is read yet.

    Args:
        experiment: The settings.
        dataset: The training windows.
        collate: Makes (inputs, targets) from windows.
        layout: How a step's batch is laid out over the ranks.
        rank: Which of them.
        call: Calls a component with arguments; may explain what it refuses.

    Raises:
        ConfigError: The sampler, the batch sampler or the loader refused a parameter.
        DataError: There is less data than one global batch.
    """
    return call(
        experiment.data_loader,
        dataset=dataset,
        sampler=call(experiment.sampler, num_samples=len(dataset)),
        collate=collate,
        batch_sampler=experiment.batch_sampler,
        layout=layout,
        rank=rank,
    )


def require_steps(loader: Any, num_steps: int) -> None:
    """Refuse a run that is longer than its data loader; one without end is never too short.

    Raises:
        ConfigError: The loader ends before step num_steps.
    """
    if hasattr(loader, "require_steps"):
        loader.require_steps(num_steps)
