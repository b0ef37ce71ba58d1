"""Linear warm-up and cosine: the published formula, resumption, and refusals."""

from __future__ import annotations

import math

import pytest
import torch

from modlib.optim.schedules import LinearWarmupCosine
from modlib.runtime.errors import ConfigError


def build(**changes: float) -> tuple[torch.optim.Optimizer, LinearWarmupCosine]:
    parameters = [torch.nn.Parameter(torch.zeros(2)) for _ in range(2)]
    optimizer = torch.optim.AdamW([{"params": parameters[:1]}, {"params": parameters[1:], "lr": 3e-2}], lr=1e-3)
    arguments: dict = {"warmup_steps": 7, "num_steps": 40, "min_lr_ratio": 0.1, **changes}
    return optimizer, LinearWarmupCosine(optimizer, **arguments)


def rates(optimizer: torch.optim.Optimizer, scheduler: LinearWarmupCosine, steps: int) -> list[list[float]]:
    found = []
    for _ in range(steps):
        found.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        scheduler.step()
    return found


def nanogpt(step: int, lr: float, warmup: int, num_steps: int, min_lr: float) -> float:
    if step < warmup:
        return lr * (step + 1) / (warmup + 1)
    if step > num_steps:
        return min_lr
    return min_lr + 0.5 * (1.0 + math.cos(math.pi * (step - warmup) / (num_steps - warmup))) * (lr - min_lr)


def test_equals_the_closed_form_in_every_group() -> None:
    for step, found in enumerate(rates(*build(), 50)):
        for lr, peak in zip(found, (1e-3, 3e-2)):
            assert abs(lr - nanogpt(step, peak, 7, 40, 0.1 * peak)) < 1e-12


def test_landmarks() -> None:
    lrs = [lr for lr, _ in rates(*build(), 45)]
    assert lrs[0] == 1e-3 / 8  # the first update already moves
    assert lrs[7] == 1e-3 == max(lrs)
    assert lrs[40] == lrs[44] == pytest.approx(1e-4, abs=1e-12)
    assert lrs[39] > lrs[40]


@pytest.mark.parametrize("stop", [0, 1, 6, 7, 8, 25, 40, 43])
def test_resuming_at_any_step_changes_nothing(stop: int) -> None:
    expected = rates(*build(), 50)
    optimizer, scheduler = build()
    assert rates(optimizer, scheduler, stop) == expected[:stop]
    states = optimizer.state_dict(), scheduler.state_dict()
    optimizer, scheduler = build()
    optimizer.load_state_dict(states[0])
    scheduler.load_state_dict(states[1])
    assert rates(optimizer, scheduler, 50 - stop) == expected[stop:]


def test_a_resumed_run_follows_its_own_configuration() -> None:
    optimizer, scheduler = build(num_steps=20)
    rates(optimizer, scheduler, 10)
    longer_optimizer, longer = build(num_steps=40)
    longer.load_state_dict(scheduler.state_dict())
    longer_optimizer.step()
    longer.step()
    assert longer_optimizer.param_groups[0]["lr"] == pytest.approx(nanogpt(11, 1e-3, 7, 40, 1e-4), abs=1e-12)


def test_no_warm_up_and_runs_shorter_than_the_warm_up() -> None:
    assert rates(*build(warmup_steps=0), 1)[0][0] == 1e-3
    short = [lr for lr, _ in rates(*build(warmup_steps=100, num_steps=2), 3)]
    assert short == pytest.approx([1e-3 / 101, 2e-3 / 101, 3e-3 / 101], abs=1e-12)


def test_wrong_values_are_refused_together() -> None:
    with pytest.raises(ConfigError) as caught:
        build(warmup_steps=-1, num_steps=0, min_lr_ratio=1.5)
    assert caught.value.problems == [
        "warmup_steps (-1) must be at least 0",
        "num_steps (0) must be at least 1",
        "min_lr_ratio (1.5) must be in [0, 1]; it is a share of the peak, not an lr",
    ]
