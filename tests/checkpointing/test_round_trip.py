"""What is saved is what is loaded, to the bit: every optimizer and scheduler, dtypes, random states, empty states."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.optim import lr_scheduler

from modlib.checkpointing.loading import load, newest, restore_newest, verify
from modlib.checkpointing.plain import decode, encode
from modlib.checkpointing.rng import capture_rng, restore_rng
from modlib.checkpointing.writing import save
from modlib.runtime.errors import CheckpointError
from tests.checkpointing.training import Run, fingerprint


@pytest.mark.parametrize(
    "optimizer", ["AdamW", "Adam", "SGD", "Muon", "Adafactor", "Adagrad", "RMSprop", "NAdam", "ASGD"]
)
def test_stop_and_resume_equals_never_stopping(tmp_path: Path, optimizer: str) -> None:
    straight = Run(seed=1, optimizer=optimizer)
    straight.train(5)
    save(tmp_path, step=5, **straight.parts, extra={"position": 40}, rank_state=capture_rng())
    straight.train(5)
    resumed = Run(seed=2, optimizer=optimizer)
    state = restore_newest(tmp_path, **resumed.parts)
    assert state is not None
    assert state.rank_state is not None
    restore_rng(state.rank_state)
    resumed.train(5)
    assert (state.step, state.extra) == (5, {"position": 40})
    assert fingerprint(resumed) == fingerprint(straight)
    assert verify(tmp_path / "step-00000005") == []


def test_an_optimizer_without_state_is_saved_and_loaded_both_ways(tmp_path: Path) -> None:
    fresh = Run(seed=1)
    before = fingerprint(fresh)
    save(tmp_path, step=0, **fresh.parts)
    assert fingerprint(fresh) == before
    assert not fresh.optimizer.state
    trained = Run(seed=2)
    trained.train(2)
    assert restore_newest(tmp_path, **trained.parts) is not None
    assert fingerprint(trained) == before


def test_a_tied_parameter_is_stored_once_and_stays_tied(tmp_path: Path) -> None:
    run = Run(seed=1)
    save(tmp_path, step=1, **run.parts)
    checkpoint = newest(tmp_path)
    assert checkpoint is not None
    assert checkpoint.manifest.aliases == {"model.head.weight": "model.embedding.weight"}
    other = Run(seed=2)
    load(checkpoint, model=other.model)
    assert other.model.head.weight is other.model.embedding.weight
    assert torch.equal(other.model.head.weight, run.model.embedding.weight)


DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool]
DTYPES += [torch.complex64, torch.float8_e4m3fn, torch.uint16]


class Buffers(nn.Module):
    """A buffer of every dtype, of awkward shapes, and one that is not contiguous."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        for dtype in DTYPES:
            for shape in ((), (0,), (1,), (3, 5, 7)):
                values = torch.randint(0, 2, shape, generator=generator).to(dtype)
                self.register_buffer(f"{dtype}_{len(shape)}_{sum(shape)}".replace(".", "_"), values)
        self.register_buffer("transposed", torch.randn(5, 9, generator=generator).t())
        self.register_buffer("mask", torch.full((4,), float("-inf")))


def test_every_dtype_and_shape_is_restored(tmp_path: Path) -> None:
    saved, loaded = Buffers(1), Buffers(2)
    save(tmp_path, step=1, model=saved)
    restore_newest(tmp_path, model=loaded)
    for (name, there), (_, here) in zip(saved.named_buffers(), loaded.named_buffers(), strict=True):
        assert there.dtype == here.dtype
        assert there.shape == here.shape
        assert (
            there.contiguous().reshape(-1).view(torch.uint8).equal(here.contiguous().reshape(-1).view(torch.uint8))
        ), name


def test_tensors_larger_than_one_file_are_cut_and_joined(tmp_path: Path) -> None:
    torch.manual_seed(0)
    saved, loaded = nn.Linear(3001, 3003), nn.Linear(3001, 3003)
    save(tmp_path, step=1, model=saved)
    assert len(list((tmp_path / "step-00000001").glob("data-*"))) > 3
    restore_newest(tmp_path, model=loaded)
    assert torch.equal(saved.weight, loaded.weight)
    assert torch.equal(saved.bias, loaded.bias)


SCHEDULERS: dict[str, Any] = {
    "StepLR": lambda o: lr_scheduler.StepLR(o, 2),
    "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, [2, 4, 4]),
    "ConstantLR": lambda o: lr_scheduler.ConstantLR(o),
    "LinearLR": lambda o: lr_scheduler.LinearLR(o),
    "ExponentialLR": lambda o: lr_scheduler.ExponentialLR(o, 0.9),
    "PolynomialLR": lambda o: lr_scheduler.PolynomialLR(o),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, 10),
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 3),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, 0.1, total_steps=50),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, 0.01, 0.1, step_size_up=3),
    "MultiplicativeLR": lambda o: lr_scheduler.MultiplicativeLR(o, lambda step: 0.9),
    "SequentialLR": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.LinearLR(o), lr_scheduler.StepLR(o, 2)], milestones=[3]
    ),
    "ChainedScheduler": lambda o: lr_scheduler.ChainedScheduler([lr_scheduler.LinearLR(o), lr_scheduler.StepLR(o, 2)]),
}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_scheduler_continues_where_it_was(tmp_path: Path, name: str) -> None:
    def build() -> tuple[nn.Module, torch.optim.Optimizer, Any]:
        model = nn.Linear(2, 2)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        return model, optimizer, SCHEDULERS[name](optimizer)

    def lrs(optimizer: torch.optim.Optimizer, scheduler: Any, steps: int) -> list[float]:
        values = []
        for _ in range(steps):
            optimizer.step()
            scheduler.step()
            values.append(optimizer.param_groups[0]["lr"])
        return values

    model, optimizer, scheduler = build()
    lrs(optimizer, scheduler, 5)
    save(tmp_path, step=5, model=model, optimizer=optimizer, scheduler=scheduler)
    expected = lrs(optimizer, scheduler, 6)
    model, optimizer, scheduler = build()
    restore_newest(tmp_path, model=model, optimizer=optimizer, scheduler=scheduler)
    assert lrs(optimizer, scheduler, 6) == expected


def test_every_random_generator_is_restored() -> None:
    def draw() -> list[Any]:
        return [random.random(), random.gauss(0, 1), np.random.normal(size=3).tolist(), torch.randn(3).tolist()]

    random.gauss(0, 1)  # leaves half a pair in the state
    np.random.normal()
    state = capture_rng()
    expected = draw()
    draw()
    restore_rng(state)
    assert draw() == expected


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: (
        st.lists(inner) | st.lists(inner).map(tuple) | st.dictionaries(st.text() | st.integers() | st.just("!"), inner)
    ),
    max_leaves=10,
)


@given(PLAIN)
def test_plain_values_come_back_equal_and_of_the_same_type(value: Any) -> None:
    import json

    def typed(value: Any) -> Any:
        if isinstance(value, dict):
            return [(typed(key), typed(item)) for key, item in value.items()]
        if isinstance(value, (list, tuple)):
            return type(value), [typed(item) for item in value]
        return type(value), repr(value)

    assert typed(decode(json.loads(json.dumps(encode(value))))) == typed(value)


def test_counters_and_scalars_are_plain() -> None:
    assert decode(encode(Counter([2, 2, 5]))) == Counter([2, 2, 5])
    assert type(decode(encode(Counter([2])))) is Counter
    assert decode(encode([np.float32(0.5), torch.tensor(3), np.int64(4), True])) == [0.5, 3, 4, True]


def test_what_is_not_plain_is_named(tmp_path: Path) -> None:
    run = Run(seed=1)
    text = r"extra.a\[1\] \(builtins.set\) must be one of None, bool, int, float, str, bytes, list, tuple, dict"
    with pytest.raises(CheckpointError, match=text):
        save(tmp_path, step=1, **run.parts, extra={"a": [1, {2}]})
    assert not list(tmp_path.iterdir())
