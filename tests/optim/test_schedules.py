"""Our schedules: published formulas, torch's and transformers' own, resumption, and refusals."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch.optim.lr_scheduler import ConstantLR, LambdaLR, LinearLR, SequentialLR

from modlib.optim.schedules import DummyLR, InverseSqrt, LinearWarmupCosine, LinearWarmupLinear, WarmupStableDecay
from modlib.runtime.errors import ConfigError


def build(**changes: float) -> tuple[torch.optim.Optimizer, LinearWarmupCosine]:
    parameters = [torch.nn.Parameter(torch.zeros(2)) for _ in range(2)]
    optimizer = torch.optim.AdamW([{"params": parameters[:1]}, {"params": parameters[1:], "lr": 3e-2}], lr=1e-3)
    arguments: dict = {"warmup_steps": 7, "num_steps": 40, "min_lr_ratio": 0.1, **changes}
    return optimizer, LinearWarmupCosine(optimizer, **arguments)


def rates(optimizer: torch.optim.Optimizer, scheduler: LambdaLR | SequentialLR, steps: int) -> list[list[float]]:
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


@pytest.mark.parametrize("stop", range(45))
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


def schedule(kind: Any, **arguments: Any) -> tuple[torch.optim.Optimizer, Any]:
    parameters = [torch.nn.Parameter(torch.zeros(2)) for _ in range(2)]
    optimizer = torch.optim.AdamW([{"params": parameters[:1]}, {"params": parameters[1:], "lr": 3e-2}], lr=1e-3)
    return optimizer, kind(optimizer, **arguments)


def warm(step: int, warmup: int) -> float:
    return (step + 1) / (warmup + 1)


def shaped(decay: str, progress: float) -> float:
    return {"linear": 1 - progress, "cosine": math.cos(math.pi * progress / 2) ** 2, "sqrt": 1 - progress**0.5}[decay]


def expected_factor(kind: Any, step: int, arguments: dict[str, Any]) -> float:
    """The formulas again, in other words."""
    warmup, total = arguments.get("warmup_steps", 0), arguments.get("num_steps", 0)
    floor = arguments.get("min_lr_ratio", 0.0)
    if kind is DummyLR:
        return 1.0
    if step < warmup:
        return warm(step, warmup)
    if kind is InverseSqrt:
        scale = arguments.get("timescale") or warmup or 10_000
        return (1 + (step - warmup) / scale) ** -0.5
    decay_steps = arguments.get("decay_steps", total - warmup)
    into = min(max(step - (total - decay_steps), 0), decay_steps)
    decay = arguments.get("decay", "sqrt" if kind is WarmupStableDecay else "linear")
    lowered = shaped(decay, into / decay_steps) if decay_steps else float(step < total)
    return floor + (1 - floor) * lowered


CASES: list[tuple[Any, dict[str, Any]]] = [
    (DummyLR, {}),
    (LinearWarmupLinear, {"warmup_steps": 7, "num_steps": 40}),
    (LinearWarmupLinear, {"warmup_steps": 0, "num_steps": 31, "min_lr_ratio": 0.2}),
    (WarmupStableDecay, {"warmup_steps": 7, "decay_steps": 10, "num_steps": 40}),
    (WarmupStableDecay, {"warmup_steps": 5, "decay_steps": 9, "num_steps": 30, "decay": "linear", "min_lr_ratio": 0.1}),
    (WarmupStableDecay, {"warmup_steps": 0, "decay_steps": 40, "num_steps": 40, "decay": "cosine"}),
    (WarmupStableDecay, {"warmup_steps": 3, "decay_steps": 0, "num_steps": 20, "decay": "cosine"}),
    (InverseSqrt, {"warmup_steps": 9}),
    (InverseSqrt, {"warmup_steps": 9, "timescale": 4}),
    (InverseSqrt, {"warmup_steps": 0}),
]


@pytest.mark.parametrize(("kind", "arguments"), CASES)
def test_closed_forms(kind: Any, arguments: dict[str, Any]) -> None:
    for step, found in enumerate(rates(*schedule(kind, **arguments), 50)):
        for lr, peak in zip(found, (1e-3, 3e-2), strict=True):
            assert abs(lr - peak * expected_factor(kind, step, arguments)) < 1e-12


@pytest.mark.parametrize(("kind", "arguments"), CASES)
def test_every_schedule_resumes_at_every_step(kind: Any, arguments: dict[str, Any]) -> None:
    straight = rates(*schedule(kind, **arguments), 45)
    optimizer, scheduler = schedule(kind, **arguments)
    for stop in range(44):
        rates(optimizer, scheduler, 1)
        fresh_optimizer, fresh = schedule(kind, **arguments)
        fresh_optimizer.load_state_dict(optimizer.state_dict())
        fresh.load_state_dict(scheduler.state_dict())
        assert rates(fresh_optimizer, fresh, 2)[: 44 - stop] == straight[stop + 1 : stop + 3]


def test_linear_is_torchs_sequence() -> None:
    """torch adds up factors, so it drifts by a few units in the last place."""

    def torchs(optimizer: torch.optim.Optimizer) -> SequentialLR:
        parts = [
            LinearLR(optimizer, start_factor=1 / 8, total_iters=7),
            LinearLR(optimizer, start_factor=1.0, end_factor=0.25, total_iters=33),
        ]
        return SequentialLR(optimizer, parts, milestones=[7])

    ours = rates(*schedule(LinearWarmupLinear, warmup_steps=7, num_steps=40, min_lr_ratio=0.25), 50)
    for step, (mine, theirs) in enumerate(zip(ours, rates(*schedule(torchs), 50), strict=True)):
        assert mine == pytest.approx(theirs, abs=1e-12), step


def test_dummy_is_torchs_constant() -> None:
    assert rates(*schedule(DummyLR), 9) == rates(*schedule(ConstantLR, factor=1.0), 9)


TRANSFORMERS: list[tuple[Any, dict[str, Any], str, dict[str, Any]]] = [
    (
        LinearWarmupCosine,
        {"warmup_steps": 7, "num_steps": 40, "min_lr_ratio": 0.0},
        "get_cosine_schedule_with_warmup",
        {"num_warmup_steps": 7, "num_training_steps": 40},
    ),
    (
        LinearWarmupLinear,
        {"warmup_steps": 7, "num_steps": 40},
        "get_linear_schedule_with_warmup",
        {"num_warmup_steps": 7, "num_training_steps": 40},
    ),
    (InverseSqrt, {"warmup_steps": 7}, "get_inverse_sqrt_schedule", {"num_warmup_steps": 7}),
    (
        InverseSqrt,
        {"warmup_steps": 7, "timescale": 20},
        "get_inverse_sqrt_schedule",
        {"num_warmup_steps": 7, "timescale": 20},
    ),
    *(
        (
            WarmupStableDecay,
            {"warmup_steps": 7, "decay_steps": 12, "num_steps": 40, "decay": ours, "min_lr_ratio": 0.1},
            "get_wsd_schedule",
            {
                "num_warmup_steps": 7,
                "num_decay_steps": 12,
                "num_training_steps": 40,
                "decay_type": theirs,
                "min_lr_ratio": 0.1,
            },
        )
        for ours, theirs in (("linear", "linear"), ("cosine", "cosine"), ("sqrt", "1-sqrt"))
    ),
]


@pytest.mark.parametrize(("kind", "arguments", "function", "settings"), TRANSFORMERS)
def test_equal_to_transformers_after_the_warm_up(
    kind: Any, arguments: dict[str, Any], function: str, settings: dict[str, Any]
) -> None:
    optimization = pytest.importorskip("transformers.optimization")
    ours = rates(*schedule(kind, **arguments), 50)
    theirs = rates(*schedule(getattr(optimization, function), **settings), 50)
    for step in range(7, 40):
        assert ours[step] == pytest.approx(theirs[step], abs=1e-12), step
    if kind is not LinearWarmupCosine:  # transformers' cosine rises again past its end
        assert ours[40:] == [pytest.approx(lrs, abs=1e-12) for lrs in theirs[40:]]
    first = 0.1 if "min_lr_ratio" in settings else 0.0  # where they differ: ours moves in the first update
    assert theirs[0] == pytest.approx([first * 1e-3, first * 3e-2], abs=1e-12)
    assert ours[0] == pytest.approx([1e-3 / 8, 3e-2 / 8], abs=1e-12)


def test_the_stable_part_does_not_know_the_end() -> None:
    short = rates(*schedule(WarmupStableDecay, warmup_steps=4, decay_steps=5, num_steps=20), 20)
    longer = rates(*schedule(WarmupStableDecay, warmup_steps=4, decay_steps=5, num_steps=40), 40)
    assert short[:16] == longer[:16]
    assert short[16] < longer[16]


def test_wrong_values_are_refused_together() -> None:
    with pytest.raises(ConfigError) as caught:
        build(warmup_steps=-1, num_steps=0, min_lr_ratio=1.5)
    assert caught.value.problems == [
        "warmup_steps (-1) must be at least 0",
        "num_steps (0) must be at least 1",
        "min_lr_ratio (1.5) must be in [0, 1]; it is a share of the peak, not an lr",
    ]
    with pytest.raises(ConfigError) as caught:
        schedule(WarmupStableDecay, warmup_steps=-1, decay_steps=-2, num_steps=5, decay="exponential")
    assert caught.value.problems == [
        "warmup_steps (-1) must be at least 0",
        "decay_steps (-2) must be at least 0",
        "decay ('exponential') must be 'linear', 'cosine' or 'sqrt'",
    ]
    with pytest.raises(ConfigError) as caught:
        schedule(WarmupStableDecay, warmup_steps=4, decay_steps=2, num_steps=5)
    assert str(caught.value) == (
        "warmup_steps (4) + decay_steps (2) must be at most num_steps (5); shorten one of them or train longer"
    )
    with pytest.raises(ConfigError) as caught:
        schedule(InverseSqrt, warmup_steps=-1, timescale=0)
    assert caught.value.problems == [
        "warmup_steps (-1) must be at least 0",
        "timescale (0) must be at least 1, or None for warmup_steps",
    ]
    with pytest.raises(ConfigError, match=r"num_steps \(0\) must be at least 1"):
        schedule(LinearWarmupLinear, warmup_steps=0, num_steps=0)
