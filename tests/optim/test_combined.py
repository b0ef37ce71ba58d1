"""Schedules of schedules: equal to torch's own, from references; what would silently do something else is refused."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim import lr_scheduler
from torch.optim.lr_scheduler import ConstantLR, CosineAnnealingLR, ExponentialLR, LinearLR, OneCycleLR

from modlib.optim.combined import ChainedSchedules, SequentialSchedules
from modlib.optim.schedules import LinearWarmupCosine, WarmupStableDecay
from modlib.runtime.errors import ConfigError
from tests.optim.test_torch_schedulers import configured

WARM = partial(LinearLR, start_factor=0.25, total_iters=4)
COSINE = partial(CosineAnnealingLR, T_max=20)
EXPONENTIAL = partial(ExponentialLR, gamma=0.9)
STABLE = partial(WarmupStableDecay, warmup_steps=3, decay_steps=5, num_steps=12)


def new_optimizer() -> torch.optim.Optimizer:
    parameters = [torch.nn.Parameter(torch.zeros(2)) for _ in range(2)]
    return torch.optim.AdamW([{"params": parameters[:1]}, {"params": parameters[1:], "lr": 3e-2}], lr=1e-3)


def rates(optimizer: torch.optim.Optimizer, scheduler: Any, steps: int) -> list[list[float]]:
    found = []
    for _ in range(steps):
        found.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        scheduler.step()
    return found


def sequential(*schedulers: Any, milestones: Any = (4,)) -> tuple[torch.optim.Optimizer, SequentialSchedules]:
    optimizer = new_optimizer()
    return optimizer, SequentialSchedules(optimizer, schedulers=schedulers, milestones=milestones)


def chained(*schedulers: Any) -> tuple[torch.optim.Optimizer, ChainedSchedules]:
    optimizer = new_optimizer()
    return optimizer, ChainedSchedules(optimizer, schedulers=schedulers)


def test_sequence_is_torchs() -> None:
    optimizer = new_optimizer()
    parts = [WARM(optimizer), COSINE(optimizer), EXPONENTIAL(optimizer)]
    torchs = rates(optimizer, lr_scheduler.SequentialLR(optimizer, parts, [4, 15]), 30)
    assert rates(*sequential(WARM, COSINE, EXPONENTIAL, milestones=[4, 15]), 30) == torchs
    assert torchs[0] == [1e-3 / 4, 3e-2 / 4]
    assert torchs[4] == pytest.approx([1e-3, 3e-2])


def test_sequence_of_ours_counts_from_where_each_begins() -> None:
    found = rates(*sequential(ConstantLR, STABLE, milestones=[6]), 25)
    optimizer = new_optimizer()
    assert found[6:] == rates(optimizer, STABLE(optimizer), 19)


def test_chain_is_the_product() -> None:
    found = rates(*chained(WARM, EXPONENTIAL), 20)
    for step, (lr, other) in enumerate(found):
        factor = min(1.0, 0.25 + 0.75 * step / 4) * 0.9**step
        assert abs(lr - 1e-3 * factor) < 1e-12
        assert abs(other - 3e-2 * factor) < 1e-12


@pytest.mark.parametrize(
    "make", [partial(sequential, WARM, COSINE, STABLE, milestones=(4, 15)), partial(chained, WARM, COSINE)]
)
def test_resuming_at_every_step(make: Any) -> None:
    straight = rates(*make(), 30)
    optimizer, scheduler = make()
    for stop in range(1, 29):
        rates(optimizer, scheduler, 1)
        other, fresh = make()
        other.load_state_dict(optimizer.state_dict())
        fresh.load_state_dict(scheduler.state_dict())
        assert rates(other, fresh, 2)[: 30 - stop] == straight[stop : stop + 2]


def test_the_same_class_twice_in_gin(tmp_path: Path) -> None:
    text = """
uses_schedule.scheduler = @SequentialSchedules
SequentialSchedules.schedulers = [@warm/LinearLR, @down/LinearLR]
SequentialSchedules.milestones = [4]
warm/LinearLR.start_factor = 0.25
warm/LinearLR.total_iters = 4
down/LinearLR.start_factor = 1.0
down/LinearLR.end_factor = 0.0
down/LinearLR.total_iters = 10
"""
    optimizer = new_optimizer()
    found = [lr for lr, _ in rates(optimizer, configured(tmp_path, text)(optimizer), 16)]
    expected = [0.25 + 0.75 * step / 4 if step < 4 else max(0.0, 1 - (step - 4) / 10) for step in range(16)]
    assert found == pytest.approx([1e-3 * factor for factor in expected], abs=1e-12)


def test_wrong_milestones_are_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        sequential(WARM, COSINE, milestones=[4, 9])
    assert str(caught.value) == (
        "milestones (2 of them) must be one fewer than schedulers (2); give the update at which each scheduler but the "
        "first begins"
    )
    for milestones in ([9, 4], [4, 4], [0, 4]):
        with pytest.raises(ConfigError, match=r"milestones \(\d, 4\) must be above 0 and increasing"):
            sequential(WARM, COSINE, EXPONENTIAL, milestones=milestones)
    with pytest.raises(ConfigError, match=r"milestones \(0 of them\) must be one fewer than schedulers \(0\)"):
        sequential(milestones=[])


def test_what_ignores_the_others_is_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        chained(WARM, partial(LinearWarmupCosine, warmup_steps=1, num_steps=9))
    assert str(caught.value).startswith(
        "schedulers (partial) must multiply the current lr, but this one computes it from the update number alone and "
        "undoes the others; use SequentialSchedules, or one of LinearLR, ConstantLR"
    )
    with pytest.raises(ConfigError) as caught:
        sequential(WARM, partial(OneCycleLR, max_lr=1.0, total_steps=9))
    assert str(caught.value) == (
        "schedulers (partial) must scale the optimizer's lr, but this one sets rates of its own; use it alone"
    )
    with pytest.raises(ConfigError) as caught:
        chained()
    assert str(caught.value) == "schedulers (none) must be at least one reference to a scheduler, such as @LinearLR"
