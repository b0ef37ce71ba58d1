"""Schedules made of schedules, one after the other or multiplied, from references that are not yet built.

They nest: torch's classes alone do not. Its SequentialLR begins a member by taking back one step of whatever is in it,
which is wrong for a member that has members, and by rates that such a member cannot compute. Here a member that has
members is built as if it were alone, left as it is, and begins with the rates that it had then.
"""

from __future__ import annotations

from bisect import bisect_right
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
from modlib.optim.schedules import write_rates
from modlib.runtime.errors import ConfigError

# These compute each rate from the update number alone, and so undo what others did to it.
_ABSOLUTE = (LambdaLR, OneCycleLR, CyclicLR, CosineAnnealingWarmRestarts, SequentialLR)
# These write the rate they begin with into the optimizer when they are built, whenever their turn is.
_OWN_RATES = (OneCycleLR, CyclicLR)
# These have members; what they have written when they were built is what they begin with.
_COMPOSED = (SequentialLR, ChainedScheduler)


@component("scheduler", "sequential_lr", runtime_args=("optimizer",))
class SequentialSchedules(SequentialLR):
    """One schedule after the other: torch's SequentialLR, from references.

    Each schedule counts its updates from where it begins, and has the rates that it has alone; it may be made of
    schedules, too. (MultiplicativeLR knows only the rate before, and goes on from there.) In gin, with a scope where
    the same class is used twice: `SequentialSchedules.schedulers = [@LinearLR, @CosineAnnealingLR]`,
    `SequentialSchedules.milestones = [100]`.

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
        built: list[Any] = []
        for scheduler in schedulers:
            if built:  # what is built next is built as if it were alone
                write_rates(optimizer, [group["initial_lr"] for group in optimizer.param_groups])
            built.append(scheduler(optimizer))
            if isinstance(built[-1], _OWN_RATES):
                raise ConfigError(
                    f"schedulers ({component_name(scheduler)}) must scale the optimizer's lr, but this one sets rates "
                    "of its own; use it alone"
                )
        super().__init__(optimizer, built, list(milestones))

    def recursive_undo(self, sched: Any = None) -> None:  # noqa: ARG002
        """Take back the first step of members that take it again when they begin; called by torch's constructor."""
        for member in self._schedulers:
            if not isinstance(member, _COMPOSED):
                member.last_epoch -= 1

    def _initial_step(self) -> None:
        write_rates(self.optimizer, self._last_lr)

    def step(self) -> None:  # type: ignore[override]
        """Go to the next update's rates."""
        self.last_epoch += 1
        index = bisect_right(self._milestones, self.last_epoch)
        member = self._schedulers[index]
        if index == 0 or self._milestones[index - 1] != self.last_epoch:
            member.step()
        elif isinstance(member, _COMPOSED):
            write_rates(self.optimizer, member.get_last_lr())
        else:
            member._update_lr(0)
        self._last_lr = member.get_last_lr()


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

    def _initial_step(self) -> None:
        write_rates(self.optimizer, self._last_lr)
