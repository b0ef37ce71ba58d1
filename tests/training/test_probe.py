"""The run's schedule, tried before the run: lengths that torch cannot take are refused with their macros."""

from __future__ import annotations

import pytest
from torch import nn

from modlib.components import component
from modlib.config import load
from modlib.runtime.errors import ConfigError
from modlib.training.building import build_experiment
from modlib.training.probe import Probe


def rates(*params: str) -> list[float]:
    config = load(["debug/tiny.gin", "optim/sequence.gin"], params)
    experiment = build_experiment(config)
    probe = Probe(config, experiment, nn.Linear(2, 2))
    probe.state_bytes()
    return probe.learning_rates(experiment.num_steps)


@pytest.mark.parametrize(("warmup", "t_max"), [(4, 0), (8, -4)])
def test_a_warm_up_as_long_as_the_run_is_refused_with_both_macros(warmup: int, t_max: int) -> None:
    with pytest.raises(ConfigError) as caught:
        rates("NUM_STEPS=4", f"WARMUP_STEPS={warmup}")
    assert caught.value.problems[0].splitlines()[0] == (
        f"T_max ({t_max}) must be at least 1; it follows from NUM_STEPS (4) and WARMUP_STEPS ({warmup}): change one of "
        "them"
    )
    assert len(caught.value.problems) == 1


def test_all_lengths_are_refused_together() -> None:
    with pytest.raises(ConfigError) as caught:
        rates("LinearLR.total_iters=-1", "CosineAnnealingLR.T_max=0")
    assert [problem.splitlines()[0] for problem in caught.value.problems] == [
        "total_iters (-1) must be at least 1; set it to 1 or more",
        "T_max (0) must be at least 1; set it to 1 or more",
    ]


@component("function", "divides_by_zero", runtime_args=("step",))
def divides_by_zero(step: int) -> float:
    """A user's function with a fault that shows at update 3 only."""
    return 1 / (3 - step)


def test_what_a_schedule_raises_is_a_config_error() -> None:
    with pytest.raises(ConfigError) as caught:
        rates("train.scheduler=@LambdaLR", "LambdaLR.lr_lambda=@divides_by_zero")
    assert str(caught.value).splitlines()[0] == (
        "scheduler (LambdaLR) must give a rate for every update; it raises ZeroDivisionError: division by zero"
    )


def test_a_good_sequence_has_its_rates() -> None:
    found = rates("NUM_STEPS=8", "WARMUP_STEPS=4")
    assert found[4] == pytest.approx(1e-3)
    assert len(found) == 8
