"""Where two schedules part, and a schedule that is taken up in its middle."""

from __future__ import annotations

from typing import Any

import gin
import pytest
import torch
from torch import nn

from modlib.config import load
from modlib.optim.schedules import built_at
from modlib.training.schedule_change import Departure, departure

SEQUENCE = ["optim/sequence.gin"]
# gin files, parameters of both, the update in which a run of 20 and one of 40 steps part
PARTINGS: dict[str, tuple[list[str], list[str], int | None]] = {
    "constant": ([], ["train.scheduler=@DummyLR"], None),
    "inverse square root": ([], ["train.scheduler=@InverseSqrt", "InverseSqrt.warmup_steps=4"], None),
    "stable, then a decay": (["optim/wsd.gin"], [], 17),  # the decay of the last 4 begins with a factor of 1
    "cosine": ([], [], 5),
    "torch's sequence": (SEQUENCE, [], 5),
    "an end that is the same": (SEQUENCE, ["CosineAnnealingLR.T_max=30"], None),
    "one cycle, whose momentum parts first": (
        [],
        ["train.scheduler=@OneCycleLR", "OneCycleLR.max_lr=1e-3", "OneCycleLR.total_steps=%NUM_STEPS"],
        1,
    ),
}


def config(files: list[str], params: list[str], steps: int) -> Any:
    return load(["debug/tiny.gin", *files], [*params, f"NUM_STEPS={steps}"])


@pytest.mark.parametrize("name", PARTINGS)
def test_where_a_longer_run_parts_from_a_shorter_one(name: str) -> None:
    files, params, expected = PARTINGS[name]
    found = departure(config(files, params, 20), config(files, params, 40), 20)
    assert (None if found is None else found.update) == expected
    if expected is not None:
        assert departure(config(files, params, 20), config(files, params, 40), expected) is None


def test_it_tells_both_rates() -> None:
    found = departure(config(["optim/wsd.gin"], [], 20), config(["optim/wsd.gin"], [], 40), 20)
    assert found == Departure(17, pytest.approx(0.5e-3), 1e-3)


@pytest.mark.parametrize("name", PARTINGS)
def test_a_schedule_taken_up_in_its_middle_has_every_bit_of_one_that_was_there_from_the_start(name: str) -> None:
    """On an optimizer that has come from a shorter one's checkpoint: LambdaLR, loaded, is an update too late."""
    files, params, _ = PARTINGS[name]

    def new_optimizer() -> torch.optim.Optimizer:
        return torch.optim.AdamW([{"params": [nn.Parameter(torch.zeros(1))], "lr": 1e-3}])

    def course(optimizer: torch.optim.Optimizer, scheduler: Any, updates: int) -> list[Any]:
        found = []
        for _ in range(updates):
            found.append([(group["lr"], group["betas"]) for group in optimizer.param_groups])
            optimizer.step()
            scheduler.step()
        return found

    def made(steps: int) -> Any:
        config(files, params, steps).activate()
        return gin.get_configurable("train")().scheduler

    short = new_optimizer()
    course(short, made(20)(short), 13)
    long = new_optimizer()
    straight = course(long, made(40)(long), 39)
    other = new_optimizer()
    made(40)(other)
    other.load_state_dict(short.state_dict())
    assert course(other, built_at(made(40), other, 13), 26) == straight[13:]
