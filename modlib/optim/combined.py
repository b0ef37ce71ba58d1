"""Schedules made of schedules, one after the other or multiplied, from references that are not yet built."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import (
    ChainedScheduler,
    CosineAnnealingWarmRestarts,
    CyclicLR,
    LambdaLR,
    OneCycleLR,
    SequentialLR,
)

from modlib.components import component, component_name
from modlib.runtime.errors import ConfigError

# These compute each rate from the update number alone, and so undo what others did to it.
_ABSOLUTE = (LambdaLR, OneCycleLR, CyclicLR, CosineAnnealingWarmRestarts, SequentialLR)
# These write the rate they begin with into the optimizer when they are built, whenever their turn is.
_OWN_RATES = (OneCycleLR, CyclicLR)


@component("scheduler", "sequential_lr", runtime_args=("optimizer",))
class SequentialSchedules(SequentialLR):
    """One schedule after the other: torch's SequentialLR, from references.

    Each schedule counts its updates from where it begins. In gin, with a scope where the same class is used twice:
    `SequentialSchedules.schedulers = [@LinearLR, @CosineAnnealingLR]`, `SequentialSchedules.milestones = [100]`.

    Args:
        optimizer: Its groups' lr is what the schedules scale.
        schedulers: References to schedules, in their order; each is called with the optimizer.
        milestones: The update at which each but the first begins; one fewer than schedulers, increasing, above 0.

    Raises:
        ConfigError: Milestones that do not fit, or a schedule (OneCycleLR, CyclicLR) that sets rates of its own, which
            would change those of the others.
    """

    def __init__(
        self, optimizer: Optimizer, *, schedulers: Sequence[Callable[[Any], Any]], milestones: Sequence[int]
    ) -> None:
        if not schedulers or len(milestones) != len(schedulers) - 1:
            raise ConfigError(
                f"milestones ({len(milestones)} of them) must be one fewer than schedulers ({len(schedulers)}); "
                "give the update at which each scheduler but the first begins"
            )
        if any(later <= earlier for earlier, later in zip((0, *milestones), milestones)):
            raise ConfigError(f"milestones ({', '.join(map(str, milestones))}) must be above 0 and increasing")
        built = []
        for scheduler in schedulers:
            built.append(scheduler(optimizer))
            if isinstance(built[-1], _OWN_RATES):
                raise ConfigError(
                    f"schedulers ({component_name(scheduler)}) must scale the optimizer's lr, but this one sets rates "
                    "of its own; use it alone"
                )
        super().__init__(optimizer, built, list(milestones))


@component("scheduler", "chained", runtime_args=("optimizer",))
class ChainedSchedules(ChainedScheduler):
    """Schedules that multiply: torch's ChainedScheduler, from references.

    The rate is lr times the factors of all of them, e.g. `ChainedSchedules.schedulers = [@LinearLR, @ExponentialLR]`
    for a warm-up during an exponential decay.

    Args:
        optimizer: Its groups' lr is what the schedules scale.
        schedulers: References to schedules; each is called with the optimizer.

    Raises:
        ConfigError: None given, or one that sets the rate whatever it was, so that the others had no effect.
    """

    def __init__(self, optimizer: Optimizer, *, schedulers: Sequence[Callable[[Any], Any]]) -> None:
        if not schedulers:
            raise ConfigError("schedulers (none) must be at least one reference to a scheduler, such as @LinearLR")
        built = []
        for scheduler in schedulers:
            built.append(scheduler(optimizer))
            if isinstance(built[-1], _ABSOLUTE):
                raise ConfigError(
                    f"schedulers ({component_name(scheduler)}) must multiply the current lr, but this one computes it "
                    "from the update number alone and undoes the others; use SequentialSchedules, or one of LinearLR, "
                    "ConstantLR, StepLR, MultiStepLR, ExponentialLR, PolynomialLR, MultiplicativeLR, CosineAnnealingLR"
                )
        super().__init__(built, optimizer)
