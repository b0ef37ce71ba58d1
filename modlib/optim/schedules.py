"""Learning-rate schedules that torch does not have."""

from __future__ import annotations

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from modlib.components import component
from modlib.runtime.errors import ConfigError


def warmup_cosine_factor(step: int, *, warmup_steps: int, num_steps: int, min_lr_ratio: float) -> float:
    """The learning rate of update number `step` (from 0) as a share of the peak.

    step < warmup_steps:  (step + 1) / (warmup_steps + 1), so the first update already moves and update
                          number warmup_steps is the first at the peak
    step < num_steps:     min + (1 - min) * (1 + cos(pi * (step - warmup_steps) / (num_steps - warmup_steps))) / 2
    after that:           min
    """
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    if step >= num_steps:
        return min_lr_ratio
    progress = (step - warmup_steps) / (num_steps - warmup_steps)
    return min_lr_ratio + (1.0 - min_lr_ratio) * 0.5 * (1.0 + math.cos(math.pi * progress))


@component("scheduler", "linear_warmup_cosine", runtime_args=("optimizer",))
class LinearWarmupCosine(LambdaLR):
    """Linear warm-up to each group's lr, then half a cosine down to min_lr_ratio of it, then constant.

    The formula is warmup_cosine_factor's, which is nanoGPT's. A run shorter than its warm-up is allowed and never
    reaches the peak.

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
        problems = []
        if warmup_steps < 0:
            problems.append(f"warmup_steps ({warmup_steps}) must be at least 0")
        if num_steps < 1:
            problems.append(f"num_steps ({num_steps}) must be at least 1")
        if not 0.0 <= min_lr_ratio <= 1.0:
            problems.append(f"min_lr_ratio ({min_lr_ratio}) must be in [0, 1]; it is a share of the peak, not an lr")
        if problems:
            raise ConfigError(problems)

        # Not attributes: a scheduler's attributes are its checkpointed state, and a resumed run follows its config.
        def factor(step: int) -> float:
            return warmup_cosine_factor(step, warmup_steps=warmup_steps, num_steps=num_steps, min_lr_ratio=min_lr_ratio)

        super().__init__(optimizer, factor)
