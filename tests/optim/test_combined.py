"""Schedules of schedules: equal to torch's own, from references; what would silently do something else is refused."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim import lr_scheduler
from torch.optim.lr_scheduler import ConstantLR, CosineAnnealingLR, ExponentialLR, LinearLR, OneCycleLR

from modlib.components import load_component
from modlib.optim.combined import ChainedSchedules, SequentialSchedules
from modlib.optim.schedules import InverseSqrt, LinearWarmupCosine, WarmupStableDecay
from modlib.runtime.errors import ConfigError
from tests.optim.test_torch_schedulers import FORMS, configured

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


@pytest.mark.parametrize("name", sorted(FORMS.keys() - {"OneCycleLR", "CyclicLR"}))
def test_without_nesting_every_bit_is_torchs(name: str) -> None:
    member = partial(load_component(name).target, **FORMS[name][0])
    for order in ((WARM, member, EXPONENTIAL), (member, WARM, COSINE)):
        optimizer = new_optimizer()
        parts = [make(optimizer) for make in order]
        torchs = rates(optimizer, lr_scheduler.SequentialLR(optimizer, parts, [4, 15]), 30)
        assert rates(*sequential(*order, milestones=[4, 15]), 30) == torchs


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


SEQUENCE = partial(SequentialSchedules, schedulers=[WARM, COSINE], milestones=[4])
BEGINS_IN_CHAIN = partial(
    SequentialSchedules, schedulers=[partial(ChainedSchedules, schedulers=[WARM]), STABLE], milestones=[5]
)
CHAIN = partial(ChainedSchedules, schedulers=[partial(ConstantLR, factor=0.5, total_iters=2), EXPONENTIAL])
CHAIN_OF_CHAINS = partial(ChainedSchedules, schedulers=[CHAIN, partial(LinearLR, start_factor=0.5, total_iters=3)])
MEMBERS = {
    **{name: partial(load_component(name).target, **arguments) for name, (arguments, _) in FORMS.items()},
    "STABLE": STABLE,
    "InverseSqrt": partial(InverseSqrt, warmup_steps=3),
    "SEQUENCE": SEQUENCE,
    "BEGINS_IN_CHAIN": BEGINS_IN_CHAIN,
    "CHAIN": CHAIN,
    "CHAIN_OF_CHAINS": CHAIN_OF_CHAINS,
}
KNOWS_THE_RATE_BEFORE = "MultiplicativeLR"


def alone(member: Any, steps: int) -> list[list[float]]:
    optimizer = new_optimizer()
    return rates(optimizer, member(optimizer), steps)


@pytest.mark.parametrize("name", MEMBERS)
def test_every_schedule_has_its_own_rates_in_a_sequence(name: str) -> None:
    """First, in the middle and last, and where the sequence is itself a member: its rates alone, or refused."""
    member = MEMBERS[name]
    if name in ("OneCycleLR", "CyclicLR"):
        with pytest.raises(ConfigError, match="must scale the optimizer's lr, but this one sets rates of its own"):
            sequential(ConstantLR, partial(SequentialSchedules, schedulers=[member], milestones=[]))
        return
    expected = alone(member, 12)
    close = partial(pytest.approx, rel=1e-12, abs=1e-18)  # torch begins a member by its closed form
    assert rates(*sequential(member, ConstantLR, milestones=[12]), 12) == expected
    if name == KNOWS_THE_RATE_BEFORE:
        return
    for before in (ConstantLR, SEQUENCE, CHAIN):
        found = rates(*sequential(before, member, CHAIN, milestones=[7, 16]), 20)
        assert found[:7] == alone(before, 7)
        assert [lr for pair in found[7:16] for lr in pair] == close([lr for pair in expected[:9] for lr in pair])
        assert found[16:] == alone(CHAIN, 4)
        nested = partial(SequentialSchedules, schedulers=[before, member, CHAIN], milestones=[7, 16])
        assert rates(*sequential(nested, STABLE, milestones=[19]), 22) == found[:19] + alone(STABLE, 3)
        assert rates(*sequential(STABLE, nested, milestones=[3]), 22) == alone(STABLE, 3) + found[:19]


@pytest.mark.parametrize("name", MEMBERS)
def test_every_schedule_in_a_chain_multiplies_or_is_refused(name: str) -> None:
    member = MEMBERS[name]
    if name in ("STABLE", "InverseSqrt", "LambdaLR", "OneCycleLR", "CyclicLR", "CosineAnnealingWarmRestarts") or (
        name in ("SEQUENCE", "BEGINS_IN_CHAIN")
    ):
        with pytest.raises(ConfigError, match="must multiply the current lr"):
            chained(EXPONENTIAL, member)
        return
    assert rates(*chained(member), 12) == alone(member, 12)
    if name == "CosineAnnealingLR":
        return  # with eta_min above 0 it is no factor
    found = rates(*chained(EXPONENTIAL, partial(ChainedSchedules, schedulers=[member])), 12)
    for step, (pair, other) in enumerate(zip(found, alone(member, 12), strict=True)):
        assert pair == pytest.approx([lr * 0.9**step for lr in other], rel=1e-12)


@pytest.mark.parametrize(
    "make",
    [
        partial(sequential, CHAIN, SEQUENCE, BEGINS_IN_CHAIN, milestones=(4, 15)),
        partial(sequential, BEGINS_IN_CHAIN, CHAIN_OF_CHAINS, milestones=(9,)),
        partial(
            sequential,
            partial(SequentialSchedules, schedulers=[SEQUENCE, CHAIN], milestones=[6]),
            SEQUENCE,
            milestones=(12,),
        ),
    ],
    ids=["chain first", "sequence first", "three deep"],
)
def test_nested_ones_resume_at_every_step(make: Any) -> None:
    straight = rates(*make(), 30)
    optimizer, scheduler = make()
    for stop in range(1, 29):
        rates(optimizer, scheduler, 1)
        other, fresh = make()
        other.load_state_dict(optimizer.state_dict())
        fresh.load_state_dict(scheduler.state_dict())
        assert rates(other, fresh, 2)[: 30 - stop] == straight[stop : stop + 2]


def test_the_state_is_torchs() -> None:
    """A checkpoint of a sequence that torch's own class made, as modlib had it, goes on with the same rates."""
    optimizer = new_optimizer()
    torchs = lr_scheduler.SequentialLR(optimizer, [WARM(optimizer), COSINE(optimizer), CHAIN(optimizer)], [4, 40])
    rates(optimizer, torchs, 9)
    other, ours = sequential(WARM, COSINE, CHAIN, milestones=[4, 40])
    ours_before = ours.state_dict()
    assert ours_before.keys() == torchs.state_dict().keys()
    other.load_state_dict(optimizer.state_dict())
    ours.load_state_dict(torchs.state_dict())
    assert rates(other, ours, 20) == rates(optimizer, torchs, 20)


def test_a_warm_up_inside_a_sequence_from_gin(tmp_path: Path) -> None:
    """torch's class loses an update here: 1e-4, 4e-4, 1e-3."""
    text = """
uses_schedule.scheduler = @outer/SequentialSchedules
outer/SequentialSchedules.schedulers = [@inner/SequentialSchedules, @ConstantLR]
outer/SequentialSchedules.milestones = [30]
inner/SequentialSchedules.schedulers = [@LinearLR, @CosineAnnealingLR]
inner/SequentialSchedules.milestones = [3]
LinearLR.start_factor = 0.1
LinearLR.total_iters = 3
CosineAnnealingLR.T_max = 27
ConstantLR.factor = 1.0
"""
    optimizer = new_optimizer()
    found = [lr for lr, _ in rates(optimizer, configured(tmp_path, text)(optimizer), 32)]
    assert found[:4] == pytest.approx([1e-4, 4e-4, 7e-4, 1e-3], abs=1e-15)
    assert found[30:] == [1e-3, 1e-3]
