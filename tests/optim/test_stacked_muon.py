"""Experts in one parameter: each matrix is updated as torch's Muon would update it alone, sharded or not."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from modlib.checkpointing.loading import restore_newest
from modlib.checkpointing.writing import save
from modlib.models.seeded_normal import fill_normal
from modlib.optim.muon import MuonGroups, MuonWithAdamW
from modlib.optim.schedules import LinearWarmupCosine
from modlib.optim.stacked_muon import StackedMuon, orthogonalized
from tests.workers import run_ranks

SHAPES = [(3, 8, 12), (3, 16, 6), (5, 7, 7)]


class SmallExperts(nn.Module):
    """Three experts, as transformers 5 keeps them, and their router."""

    def __init__(self) -> None:
        super().__init__()
        self.up_proj = nn.Parameter(torch.empty(3, 16, 8))
        self.down_proj = nn.Parameter(torch.empty(3, 8, 16))
        self.up_proj_bias = nn.Parameter(torch.empty(3, 16))


class Mixture(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.experts = SmallExperts()
        self.gate = nn.Linear(8, 3, bias=False)
        self.out = nn.Linear(8, 8, bias=False)


def filled(model: nn.Module) -> nn.Module:
    for name, parameter in model.named_parameters():
        fill_normal(parameter.data, seed=0, name=name, mean=0.0, std=1.0)
    return model


def updates(model: nn.Module, optimizers: list[Any], first: int = 0, last: int = 3) -> dict[str, Tensor]:
    for step in range(first, last):
        for name, parameter in model.named_parameters():
            parameter.grad = torch.zeros_like(parameter)
            fill_normal(parameter.grad, seed=step, name=name, mean=0.0, std=0.1)
        for one in optimizers:
            one.step()
    whole = {n: p.full_tensor() if isinstance(p, DTensor) else p for n, p in model.named_parameters()}
    return {name: parameter.detach().clone() for name, parameter in whole.items()}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("nesterov", "adjust_lr_fn"), [(True, "match_rms_adamw"), (False, "original")])
def test_every_matrix_moves_as_with_torchs_muon(shape: tuple[int, ...], nesterov: bool, adjust_lr_fn: str) -> None:
    start = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    stacked, alone = nn.Parameter(start.clone()), [nn.Parameter(each.clone()) for each in start]
    settings: dict[str, Any] = {"lr": 0.02, "weight_decay": 0.1, "momentum": 0.9, "nesterov": nesterov}
    torchs = torch.optim.Muon(alone, adjust_lr_fn=adjust_lr_fn, **settings)
    ours = StackedMuon([stacked], torchs.defaults)
    for step in range(4):
        grad = torch.randn(shape, generator=torch.Generator().manual_seed(100 + step))
        stacked.grad = grad.clone()
        for parameter, own in zip(alone, grad, strict=True):
            parameter.grad = own.clone()
        ours.step()
        torchs.step()
    expected = torch.stack([parameter.detach() for parameter in alone])
    assert (stacked.detach() - start).abs().max() > 0.02
    # batched products of bfloat16 are summed in another order
    assert (stacked.detach() - expected).abs().max() < 2e-3


def test_every_matrix_is_orthogonalized_by_itself() -> None:
    update = (
        torch.randn(4, 8, 16, generator=torch.Generator().manual_seed(2))
        * torch.tensor([1e-3, 1, 10, 1e4])[:, None, None]
    )
    values = torch.linalg.svdvals(orthogonalized(update, (3.4445, -4.7750, 2.0315), 5, 1e-7))
    assert values.min() > 0.5
    assert values.max() < 1.3
    assert orthogonalized(update[:0], (3.4445, -4.7750, 2.0315), 5, 1e-7).shape == (0, 8, 16)


def test_as_many_at_once_as_memory_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    update, settings = torch.randn(5, 8, 16, generator=torch.Generator().manual_seed(3)), ((3.4, -4.8, 2.0), 5, 1e-7)
    whole = orthogonalized(update, *settings)
    for values in (1, 2 * 8 * 16):
        monkeypatch.setattr("modlib.optim.stacked_muon._VALUES_AT_ONCE", values)
        assert (orthogonalized(update, *settings) - whole).abs().max() < 0.02


def test_a_mixture_has_three_kinds_of_groups() -> None:
    model = Mixture()
    held = {group["algorithm"]: [] for group in MuonGroups()(model)}
    for group in MuonGroups()(model):
        held[group["algorithm"]] += [n for n, p in model.named_parameters() if any(p is q for q in group["params"])]
    assert held == {
        "muon": ["out.weight"],
        "muon_of_each": ["experts.up_proj", "experts.down_proj"],
        "adam_w": ["gate.weight", "experts.up_proj_bias"],
    }
    with pytest.raises(ValueError, match=r"must have three axes, not \(8, 8\)"):
        StackedMuon([model.out.weight], {"lr": 1.0})


def sharded() -> dict[str, Tensor]:
    model = Mixture()
    fully_shard(model, mesh=init_device_mesh("cpu", (torch.distributed.get_world_size(),)))
    return updates(model, [MuonWithAdamW(MuonGroups()(filled(model)), lr=0.02)])


def test_two_ranks_that_share_three_experts_equal_one_process() -> None:
    model = filled(Mixture())
    expected = updates(model, [MuonWithAdamW(MuonGroups()(model), lr=0.02)])
    for found in run_ranks(2, sharded):
        for name, value in expected.items():
            assert (found[name] - value).abs().max() < 1e-6, name


@pytest.mark.parametrize("through", ["checkpoint", "state_dict"])
def test_resumed_equals_never_stopping(through: str, tmp_path: Path) -> None:
    def build() -> tuple[nn.Module, MuonWithAdamW, LinearWarmupCosine]:
        model = filled(Mixture())
        optimizer = MuonWithAdamW(MuonGroups()(model), adamw_lr=3e-3)
        return model, optimizer, LinearWarmupCosine(optimizer, warmup_steps=3, num_steps=9)

    model, optimizer, scheduler = build()
    for step in range(3):
        updates(model, [optimizer, scheduler], step, step + 1)
    other, resumed, fresh = build()
    if through == "checkpoint":
        save(tmp_path, step=3, model=model, optimizer=optimizer, scheduler=scheduler)
        assert restore_newest(tmp_path, model=other, optimizer=resumed, scheduler=fresh) is not None
    else:
        other.load_state_dict(model.state_dict())
        resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        fresh.load_state_dict(scheduler.state_dict())
    expected = updates(model, [optimizer, scheduler], 3, 6)
    found = updates(other, [resumed, fresh], 3, 6)
    assert all(torch.equal(found[name], value) for name, value in expected.items())
