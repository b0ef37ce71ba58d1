"""torch's schedulers as the catalogue offers them: closed forms, resumption at any step, momentum, and their ends."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gin
import pytest
import torch

from modlib.checkpointing.loading import restore_newest
from modlib.checkpointing.writing import save
from modlib.components import SCHEDULERS, component, load_component
from modlib.config import load
from modlib.runtime.errors import ConfigError

STEPS = 40


def triangle(step: int, up: int, down: int) -> float:
    """From 0 to 1 in `up` steps and back in `down`, again and again."""
    inside = step % (up + down)
    return inside / up if inside <= up else 1 - (inside - up) / down


def cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2


def one_cycle(step: int) -> float:
    """0.3 * 40 = 12 steps: up from 1/25 of the maximum until step 11, down to 1/250,000 of it until step 39."""
    lowest, highest = 4e-5, 1e-3
    return cosine(lowest, highest, step / 11) if step <= 11 else cosine(highest, lowest / 1e4, (step - 11) / 28)


def halved(step: int) -> float:
    return 0.5 if step % 2 else 0.75


# scheduler -> (arguments, the rate of update number `step` of a group whose lr is `base`)
FORMS: dict[str, tuple[dict[str, Any], Callable[[int, float], float]]] = {
    "ConstantLR": ({"factor": 0.25, "total_iters": 6}, lambda step, base: base * (0.25 if step < 6 else 1)),
    "CosineAnnealingLR": ({"T_max": 40, "eta_min": 1e-5}, lambda step, base: cosine(base, 1e-5, step / 40)),
    "CosineAnnealingWarmRestarts": ({"T_0": 12}, lambda step, base: cosine(base, 0, step % 12 / 12)),
    "CyclicLR": (
        {"base_lr": 1e-4, "max_lr": 1e-3, "step_size_up": 5, "step_size_down": 8},
        lambda step, base: 1e-4 + 9e-4 * triangle(step, 5, 8),
    ),
    "ExponentialLR": ({"gamma": 0.93}, lambda step, base: base * 0.93**step),
    "LambdaLR": ({"lr_lambda": halved}, lambda step, base: base * halved(step)),
    "LinearLR": (
        {"start_factor": 0.1, "total_iters": 8},
        lambda step, base: base * (0.1 + 0.9 * min(step, 8) / 8),
    ),
    "MultiStepLR": (
        {"milestones": [5, 20], "gamma": 0.3},
        lambda step, base: base * 0.3 ** ((step >= 5) + (step >= 20)),
    ),
    "MultiplicativeLR": ({"lr_lambda": halved}, lambda step, base: base * 0.5 ** -(-step // 2) * 0.75 ** (step // 2)),
    "OneCycleLR": ({"max_lr": 1e-3, "total_steps": STEPS}, lambda step, base: one_cycle(step)),
    "PolynomialLR": ({"total_iters": 30, "power": 2.0}, lambda step, base: base * (1 - min(step, 30) / 30) ** 2),
    "StepLR": ({"step_size": 7, "gamma": 0.5}, lambda step, base: base * 0.5 ** (step // 7)),
}


def build(name: str, **changes: Any) -> tuple[torch.nn.Module, torch.optim.Optimizer, Any]:
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW([{"params": [model.weight]}, {"params": [model.bias], "lr": 3e-2}], lr=1e-3)
    return model, optimizer, load_component(name).target(optimizer, **{**FORMS[name][0], **changes})


def advance(optimizer: torch.optim.Optimizer, scheduler: Any, steps: int) -> list[list[tuple[float, float]]]:
    """(lr, beta 1) of each group in each update."""
    found = []
    for _ in range(steps):
        found.append([(group["lr"], group["betas"][0]) for group in optimizer.param_groups])
        optimizer.step()
        scheduler.step()
    return found


def test_every_scheduler_of_the_table_is_tested() -> None:
    assert FORMS.keys() == SCHEDULERS.keys() | {"OneCycleLR"}


@pytest.mark.parametrize("name", FORMS)
def test_closed_form(name: str) -> None:
    for step, groups in enumerate(advance(*build(name)[1:], STEPS)):
        for (lr, _), base in zip(groups, (1e-3, 3e-2), strict=True):
            assert abs(lr - FORMS[name][1](step, base)) < 1e-12, step


@pytest.mark.parametrize("name", FORMS)
def test_resuming_at_every_step_changes_nothing(name: str) -> None:
    straight = advance(*build(name)[1:], STEPS)
    _, optimizer, scheduler = build(name)
    for stop in range(1, STEPS - 2):
        advance(optimizer, scheduler, 1)
        _, other, fresh = build(name)
        other.load_state_dict(optimizer.state_dict())
        fresh.load_state_dict(scheduler.state_dict())
        assert advance(other, fresh, 2) == straight[stop : stop + 2]


@pytest.mark.parametrize("name", FORMS)
def test_a_checkpoint_resumes_it(name: str, tmp_path: Path) -> None:
    straight = advance(*build(name)[1:], STEPS)
    model, optimizer, scheduler = build(name)
    advance(optimizer, scheduler, 17)
    save(tmp_path, step=17, model=model, optimizer=optimizer, scheduler=scheduler)
    model, optimizer, scheduler = build(name)
    restore_newest(tmp_path, model=model, optimizer=optimizer, scheduler=scheduler)
    assert advance(optimizer, scheduler, STEPS - 17) == straight[17:]


def test_one_cycle_moves_adams_first_beta() -> None:
    """beta 1 goes down while the rate goes up; cycle_momentum=False leaves it alone."""
    betas = [groups[0][1] for groups in advance(*build("OneCycleLR")[1:], STEPS)]
    expected = [cosine(0.95, 0.85, s / 11) if s <= 11 else cosine(0.85, 0.95, (s - 11) / 28) for s in range(STEPS)]
    assert betas == pytest.approx(expected, abs=1e-12)
    still = advance(*build("OneCycleLR", cycle_momentum=False)[1:], STEPS)
    assert {beta for groups in still for _, beta in groups} == {0.9}


def test_one_cycle_ends_with_an_error_not_with_wrong_rates() -> None:
    _, optimizer, scheduler = build("OneCycleLR")
    advance(optimizer, scheduler, STEPS)  # training of exactly total_steps updates steps the schedule so often
    with pytest.raises(ConfigError) as caught:
        advance(optimizer, scheduler, 1)
    assert str(caught.value) == (
        "total_steps (40) must be at least the number of updates (41 and more); set OneCycleLR.total_steps = %NUM_STEPS"
    )


@component("run", "uses_schedule")
def uses_schedule(scheduler: Callable[..., Any]) -> Callable[..., Any]:
    """What a run takes."""
    return scheduler


@component("function", "third", runtime_args=("step",))
def third(step: int) -> float:
    """A user's function of the step."""
    return 1.0 if step < 2 else 1 / 3


def configured(tmp_path: Path, text: str) -> Any:
    (tmp_path / "run.gin").write_text(text)
    load([tmp_path / "run.gin"]).activate()
    return gin.get_configurable("uses_schedule")()


def test_t_max_of_gin_reaches_torch(tmp_path: Path) -> None:
    scheduler = configured(
        tmp_path,
        "uses_schedule.scheduler = @CosineAnnealingLR\nCosineAnnealingLR.T_max = 10\nCosineAnnealingLR.eta_min = 1e-4",
    )(torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1e-2))
    assert (scheduler.T_max, scheduler.eta_min) == (10, 1e-4)


@pytest.mark.parametrize(
    ("name", "expected"), [("LambdaLR", [1, 1, 1 / 3, 1 / 3]), ("MultiplicativeLR", [1, 1, 1 / 3, 1 / 9])]
)
def test_a_function_of_the_user_is_a_component(name: str, expected: list[float], tmp_path: Path) -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = configured(tmp_path, f"uses_schedule.scheduler = @{name}\n{name}.lr_lambda = @third")(optimizer)
    found = []
    for _ in expected:
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert found == pytest.approx(expected)
