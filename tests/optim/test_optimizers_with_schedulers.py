"""Every optimizer with every schedule, wired from gin: two updates, and the same two with a checkpoint in between."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import gin
import pytest
import torch
from torch import nn

from modlib.checkpointing.loading import restore_newest
from modlib.checkpointing.writing import save
from modlib.components import component, known_components
from modlib.config import load
from modlib.models.gpt2 import GPT2
from modlib.models.initialization import ComposedInitializer
from modlib.optim.groups import DecayGroups
from modlib.optim.schedules import DummyLR
from tests.checkpointing.training import fingerprint

ROWS = Path(__file__).parents[1] / "rows"


def names(kind: str) -> list[str]:
    return sorted(
        name
        for name, entry in known_components().items()
        if entry.type == kind and entry.module.startswith(("modlib.", "torch."))
    )


OPTIMIZERS, SCHEDULERS = names("optimizer"), names("scheduler")
WITH_MOMENTUM = {"Adam", "AdamW", "Adamax", "CheckpointedOptimizer", "NAdam", "RAdam", "Muon", "RMSprop", "SGD"}


@component("run", "optimization")
def optimization(
    optimizer: Callable[..., Any], parameter_groups: Callable[..., Any], schedulers: Sequence[Callable[..., Any]]
) -> tuple[Callable[..., Any], Callable[..., Any], Sequence[Callable[..., Any]]]:
    """What a run takes of this package."""
    return optimizer, parameter_groups, schedulers


def gin_text(optimizer: str, assets: Path) -> str:
    """The rows' own bindings of the optimizer and of all schedulers; {assets} holds a checkpoint of the same model."""
    rows = dict.fromkeys(
        line.replace("{assets}", str(assets)) for name in (optimizer, *SCHEDULERS) for line in row(name)
    )
    return "\n".join(
        (
            *sorted(rows, key=lambda line: not line.startswith("import")),
            f"optimization.optimizer = @{optimizer}",
            f"optimization.parameter_groups = @{'MuonGroups' if optimizer == 'MuonWithAdamW' else 'DecayGroups'}",
            f"optimization.schedulers = [{', '.join(f'@{name}' for name in SCHEDULERS)}]",
            *(f"{name}.cycle_momentum = {optimizer in WITH_MOMENTUM}" for name in ("OneCycleLR", "CyclicLR")),
        )
    )


def row(name: str) -> list[str]:
    path = ROWS / f"{name}.gin"
    return [line for line in path.read_text().splitlines() if line] if path.exists() else []


@dataclass
class Run:
    model: nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: Any

    @property
    def parts(self) -> dict[str, Any]:
        return {"model": self.model, "optimizer": self.optimizer, "scheduler": self.scheduler}

    def step(self, number: int) -> None:
        tokens = torch.arange(8).view(2, 4) * (number + 1) % 17
        self.model(tokens).logsumexp(-1).sum().backward()
        self.optimizer.step()
        self.scheduler.step()
        self.optimizer.zero_grad()


def build(choice: tuple[Any, Any], scheduler: Any, seed: int, only_matrices: bool) -> Run:
    model = GPT2(vocab_size=17, seq_len=4, num_layers=1, num_heads=1, dim=4)
    ComposedInitializer()(model, seed)
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.ndim == 2 or not only_matrices)
    optimizer = choice[0](choice[1]()(model))
    if hasattr(optimizer, "restore_state"):
        optimizer.restore_state(model)
    return Run(model, optimizer, scheduler(optimizer))


@pytest.mark.slow
@pytest.mark.parametrize("saved", ["in turn", pytest.param("all", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_two_updates_with_every_scheduler(name: str, saved: str, tmp_path: Path) -> None:
    """And the same after a checkpoint: of every pair, or of so many that each optimizer and each schedule is in one."""
    if name == "CheckpointedOptimizer":
        earlier = build((partial(torch.optim.AdamW, lr=1e-3), DecayGroups), DummyLR, 2, False)
        earlier.step(5)
        save(tmp_path / "earlier", step=1, model=earlier.model, optimizer=earlier.optimizer)
    (tmp_path / "run.gin").write_text(gin_text(name, tmp_path / "earlier"))
    load([tmp_path / "run.gin"]).activate()
    optimizer, groups, schedulers = gin.get_configurable("optimization")()
    for place, (label, scheduler) in enumerate(zip(SCHEDULERS, schedulers, strict=True)):
        is_saved = saved == "all" or place % len(OPTIMIZERS) == OPTIMIZERS.index(name)
        straight = build((optimizer, groups), scheduler, 0, name == "Muon")
        initial = [parameter.detach().clone() for parameter in straight.model.parameters()]
        straight.step(0)
        if is_saved:
            save(tmp_path / label, step=1, **straight.parts)
        straight.step(1)
        for before, parameter in zip(initial, straight.model.parameters(), strict=True):
            # a schedule may begin so low that a norm's 1.0 absorbs the first updates
            assert torch.equal(before, parameter) != parameter.requires_grad or parameter.ndim == 1, label
        if not is_saved:
            continue

        resumed = build((optimizer, groups), scheduler, 1, name == "Muon")
        assert restore_newest(tmp_path / label, **resumed.parts) is not None
        resumed.step(1)
        assert fingerprint(resumed) == fingerprint(straight), label  # type: ignore[arg-type]


def test_the_catalogue_lists_what_training_can_drive() -> None:
    gone = {"LBFGS", "SparseAdam", "ReduceLROnPlateau", "SequentialLR", "ChainedScheduler"}
    assert not gone & known_components().keys()
    assert len(OPTIMIZERS) == 15
    assert len(SCHEDULERS) == 19
