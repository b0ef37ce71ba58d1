"""Learning-rate schedules that torch does not have, and its one-cycle schedule with an end that is explained.

All of ours are functions of the update number alone: the rate of update t is lr * factor(t), so a run that is resumed
at any step has the rates of one that never stopped. In the warm-up, for `step` (from 0) below warmup_steps,

    factor = (step + 1) / (warmup_steps + 1)

so the first update already moves and update number warmup_steps is the first at the peak. transformers' schedules,
which are equal from there on, begin at 0 (step / warmup_steps): their first update does nothing.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from modlib.components import component
from modlib.runtime.errors import ConfigError


class Scheduler(Protocol):
    """What training asks of a learning-rate schedule; those of torch have it."""

    def step(self) -> None:
        """One update was made: set the rates of the next one in the optimizer's groups."""
        ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> None: ...


def write_rates(optimizer: Optimizer, rates: Sequence[float | Tensor]) -> None:
    """Set the learning rate of each parameter group; one that is a tensor stays that tensor."""
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def built_at(make: Callable[[Optimizer], Scheduler], optimizer: Optimizer, step: int) -> Scheduler:
    """A schedule as it is after `step` updates, whatever rates the optimizer has; it gets those of the next update.

    It is stepped there from its beginning. So a run that changes its schedule has the rates of one that always had it:
    a checkpointed state would bring numbers of the old schedule with it, and torch's LambdaLR, loaded under another
    one, leaves the old one's rate in place for an update.

    Args:
        make: Builds the schedule.
        optimizer: A schedule was built on it before, so its groups have an "initial_lr".
        step: Updates that were made.
    """
    write_rates(optimizer, [group["initial_lr"] for group in optimizer.param_groups])
    with warnings.catch_warnings():  # that no update is made between two steps
        warnings.simplefilter("ignore", UserWarning)
        scheduler = make(optimizer)
        for _ in range(step):
            scheduler.step()
    return scheduler


# Shapes of a decay from 1 to 0 as its progress goes from 0 to 1.
_DECAYS: dict[str, Callable[[float], float]] = {
    "linear": lambda progress: 1.0 - progress,
    "cosine": lambda progress: 0.5 * (1.0 + math.cos(math.pi * progress)),
    "sqrt": lambda progress: 1.0 - math.sqrt(progress),
}


def warmup_factor(step: int, warmup_steps: int) -> float:
    """The share of the peak in update number `step` (from 0) of a linear warm-up; 1 after it."""
    return min(1.0, (step + 1) / (warmup_steps + 1))


def warmup_decay_factor(
    step: int, *, warmup_steps: int, decay_from: int, num_steps: int, decay: str, min_lr_ratio: float
) -> float:
    """The learning rate of update number `step` (from 0) as a share of the peak.

    step < warmup_steps:  (step + 1) / (warmup_steps + 1)
    step < decay_from:    1
    step < num_steps:     min + (1 - min) * shape((step - decay_from) / (num_steps - decay_from))
    after that:           min
    """
    if step < warmup_steps:
        return warmup_factor(step, warmup_steps)
    if step >= num_steps:
        return min_lr_ratio
    if step < decay_from:
        return 1.0
    progress = (step - decay_from) / (num_steps - decay_from)
    return min_lr_ratio + (1.0 - min_lr_ratio) * _DECAYS[decay](progress)


def _range_problems(num_steps: int, min_lr_ratio: float, **steps: int) -> list[str]:
    problems = [f"{name} ({value}) must be at least 0" for name, value in steps.items() if value < 0]
    if num_steps < 1:
        problems.append(f"num_steps ({num_steps}) must be at least 1")
    if not 0.0 <= min_lr_ratio <= 1.0:
        problems.append(f"min_lr_ratio ({min_lr_ratio}) must be in [0, 1]; it is a share of the peak, not an lr")
    return problems


class _WarmupDecay(LambdaLR):
    """Linear warm-up, constant, decay.

    The settings live in a closure: a scheduler's attributes are its checkpointed state, and a resumed run follows its
    configuration.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        warmup_steps: int,
        decay_from: int,
        num_steps: int,
        decay: str,
        min_lr_ratio: float,
    ) -> None:
        def factor(step: int) -> float:
            return warmup_decay_factor(
                step,
                warmup_steps=warmup_steps,
                decay_from=decay_from,
                num_steps=num_steps,
                decay=decay,
                min_lr_ratio=min_lr_ratio,
            )

        super().__init__(optimizer, factor)


@component("scheduler", "dummy_lr", runtime_args=("optimizer",))
class DummyLR(LambdaLR):
    """No schedule: each group keeps its lr.

    Args:
        optimizer: Its groups' lr stay.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        super().__init__(optimizer, lambda _: 1.0)


@component("scheduler", "linear_warmup_cosine", runtime_args=("optimizer",))
class LinearWarmupCosine(_WarmupDecay):
    """Linear warm-up to each group's lr, then half a cosine down to min_lr_ratio of it, then constant.

    The formula is nanoGPT's. A run shorter than its warm-up is allowed and never reaches the peak.

    Args:
        optimizer: Its groups' lr is the peak.
        warmup_steps: Updates below the peak, at least 0.
        num_steps: Update from which the learning rate stays at its minimum, at least 1.
        min_lr_ratio: Minimum as a share of the peak, in [0, 1].

    Raises:
        ConfigError: A value outside its range.

    Source: Loshchilov and Hutter 2017, SGDR, equation 5; Brown et al. 2020, GPT-3, appendix B (10 % minimum).
    """

    def __init__(self, optimizer: Optimizer, *, warmup_steps: int, num_steps: int, min_lr_ratio: float = 0.1) -> None:
        if problems := _range_problems(num_steps, min_lr_ratio, warmup_steps=warmup_steps):
            raise ConfigError(problems)
        super().__init__(optimizer, warmup_steps, warmup_steps, num_steps, "cosine", min_lr_ratio)


@component("scheduler", "linear_warmup_linear", runtime_args=("optimizer",))
class LinearWarmupLinear(_WarmupDecay):
    """Linear warm-up to each group's lr, then a straight line down to min_lr_ratio of it, then constant.

    A run shorter than its warm-up is allowed and never reaches the peak.

    Args:
        optimizer: Its groups' lr is the peak.
        warmup_steps: Updates below the peak, at least 0.
        num_steps: Update from which the learning rate stays at its minimum, at least 1.
        min_lr_ratio: Minimum as a share of the peak, in [0, 1].

    Raises:
        ConfigError: A value outside its range.

    Source: Devlin et al. 2019, BERT, appendix A.2.
    """

    def __init__(self, optimizer: Optimizer, *, warmup_steps: int, num_steps: int, min_lr_ratio: float = 0.0) -> None:
        if problems := _range_problems(num_steps, min_lr_ratio, warmup_steps=warmup_steps):
            raise ConfigError(problems)
        super().__init__(optimizer, warmup_steps, warmup_steps, num_steps, "linear", min_lr_ratio)


@component("scheduler", "warmup_stable_decay", runtime_args=("optimizer",))
class WarmupStableDecay(_WarmupDecay):
    """Linear warm-up to each group's lr, constant, and in the last decay_steps down to min_lr_ratio of it.

    Until the decay begins, the rates do not depend on num_steps: a run can be extended from there, by its name and a
    larger num_steps, and other runs can branch from it (docs/resume.md).

    Args:
        optimizer: Its groups' lr is the peak.
        warmup_steps: Updates below the peak, at least 0.
        decay_steps: Updates of the decay, the last ones before num_steps; at least 0, a tenth to a fifth is common.
        num_steps: Update from which the learning rate stays at its minimum; at least warmup_steps + decay_steps.
        decay: Shape of the decay with its progress p: "linear" (1 - p), "cosine" ((1 + cos(pi p)) / 2) or "sqrt"
            (1 - sqrt(p)).
        min_lr_ratio: Minimum as a share of the peak, in [0, 1].

    Raises:
        ConfigError: A value outside its range.

    Source: Hu et al. 2024, MiniCPM, section 4; Haegele et al. 2024, Scaling Laws and Compute-Optimal Training Beyond
    Fixed Training Durations, section 3 ("sqrt").
    """

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        warmup_steps: int,
        decay_steps: int,
        num_steps: int,
        decay: Literal["linear", "cosine", "sqrt"] = "sqrt",
        min_lr_ratio: float = 0.0,
    ) -> None:
        problems = _range_problems(num_steps, min_lr_ratio, warmup_steps=warmup_steps, decay_steps=decay_steps)
        if decay not in _DECAYS:
            problems.append(f"decay ({decay!r}) must be 'linear', 'cosine' or 'sqrt'")
        if not problems and warmup_steps + decay_steps > num_steps:
            problems.append(
                f"warmup_steps ({warmup_steps}) + decay_steps ({decay_steps}) must be at most num_steps ({num_steps}); "
                "shorten one of them or train longer"
            )
        if problems:
            raise ConfigError(problems)
        super().__init__(optimizer, warmup_steps, num_steps - decay_steps, num_steps, decay, min_lr_ratio)


@component("scheduler", "inverse_sqrt", runtime_args=("optimizer",))
class InverseSqrt(LambdaLR):
    """Linear warm-up to each group's lr, then lr * sqrt(timescale / (timescale + step - warmup_steps)), without end.

    Args:
        optimizer: Its groups' lr is the peak.
        warmup_steps: Updates below the peak, at least 0.
        timescale: Updates after the warm-up in which the rate falls to 1 / sqrt(2) of the peak, at least 1; default
            warmup_steps, with which the decay is lr * sqrt(warmup_steps / step), or 10,000 where there is no warm-up.

    Raises:
        ConfigError: A value outside its range.

    Source: Vaswani et al. 2017, Attention Is All You Need, section 5.3; Zhai et al. 2022, Scaling Vision Transformers,
    section 3.5 (timescale).
    """

    def __init__(self, optimizer: Optimizer, *, warmup_steps: int, timescale: int | None = None) -> None:
        problems = []
        if warmup_steps < 0:
            problems.append(f"warmup_steps ({warmup_steps}) must be at least 0")
        if timescale is not None and timescale < 1:
            problems.append(f"timescale ({timescale}) must be at least 1, or None for warmup_steps")
        if problems:
            raise ConfigError(problems)
        scale = timescale or warmup_steps or 10_000

        def factor(step: int) -> float:
            if step < warmup_steps:
                return warmup_factor(step, warmup_steps)
            return math.sqrt(scale / (scale + step - warmup_steps))

        super().__init__(optimizer, factor)


@component("scheduler", "onecycle_lr", runtime_args=("optimizer",))
class OneCycleLR(torch.optim.lr_scheduler.OneCycleLR):
    """torch's one-cycle schedule: up to max_lr, far down again, and momentum (Adam's first beta) the other way round.

    Arguments are torch's: set max_lr and total_steps, which is train.num_steps. cycle_momentum=False leaves momentum as
    it is; some optimizers have none to cycle.

    Raises:
        ConfigError: More steps than total_steps; the plan of a run finds it before the run begins.
        ValueError: A value outside its range, from torch.

    Source: Smith and Topin 2017, Super-Convergence.
    """

    def step(self, epoch: int | None = None) -> None:
        """Go to the next update's rates."""
        if self.last_epoch >= self.total_steps:
            raise ConfigError(
                f"total_steps ({self.total_steps}) must be at least the number of updates ({self.last_epoch + 1} and "
                "more); set OneCycleLR.total_steps = %NUM_STEPS"
            )
        super().step(epoch)
