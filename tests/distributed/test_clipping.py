"""Gradient norms and clipping: one process's numbers on any number of ranks, and no NaN that slips through."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from modlib.distributed.clipping import DummyClipper, GradientClipper, LoggingOnlyClipper
from modlib.models.seeded_normal import fill_normal
from modlib.runtime.errors import ConfigError
from tests.workers import run_ranks

NORMS: tuple[Any, ...] = (1, 2, "inf")


def model() -> nn.Module:
    """Uneven shards, some of them empty on four ranks."""
    built = nn.Sequential(nn.Linear(5, 7), nn.LayerNorm(7), nn.Linear(7, 3))
    if dist.is_initialized():
        mesh = init_device_mesh("cpu", (dist.get_world_size(),))
        fully_shard(built[0], mesh=mesh)
        fully_shard(built, mesh=mesh)
    return built


def set_gradients(built: nn.Module) -> None:
    for name, parameter in built.named_parameters():
        parameter.grad = torch.zeros_like(parameter)
        fill_normal(parameter.grad, seed=3, name=name, mean=0.1, std=2.0)


def whole(tensor: torch.Tensor | None) -> torch.Tensor:
    assert tensor is not None
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().flatten()


def clipped(norm_type: Any, max_norm: float | None) -> tuple[float, torch.Tensor]:
    """The norm before clipping, and all gradients after it."""
    built = model()
    set_gradients(built)
    clipper = GradientClipper(built, max_norm=max_norm, norm_type=norm_type)
    norm = clipper.norm()
    clipper.clip(norm)
    assert not isinstance(norm, DTensor)
    return float(norm), torch.cat([whole(parameter.grad) for parameter in built.parameters()])


def every_clip() -> list[tuple[float, torch.Tensor]]:
    return [clipped(norm_type, max_norm) for norm_type in NORMS for max_norm in (1.0, 1e9, None)]


@pytest.mark.parametrize("world_size", [1, 2, pytest.param(4, marks=pytest.mark.slow)])
def test_ranks_agree_with_one_process(world_size: int) -> None:
    expected = every_clip()
    for found in run_ranks(world_size, every_clip):
        for (norm, gradients), (true_norm, true_gradients) in zip(found, expected, strict=True):
            assert norm == pytest.approx(true_norm, rel=1e-6)
            assert torch.allclose(gradients, true_gradients, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("norm_type", NORMS)
def test_the_norm_is_the_formula_and_that_before_clipping(norm_type: Any) -> None:
    _, raw = clipped(norm_type, None)
    order = float(norm_type)
    exact = float(raw.double().abs().max() if order == math.inf else raw.double().abs().pow(order).sum() ** (1 / order))
    norm, gradients = clipped(norm_type, 1.0)
    assert norm == pytest.approx(exact, rel=1e-6)
    assert norm > 1
    assert float(torch.linalg.vector_norm(gradients, order)) == pytest.approx(1.0, rel=1e-5)
    assert torch.equal(clipped(norm_type, 1e9)[1], raw)


def test_four_ones() -> None:
    layer = nn.Linear(4, 1, bias=False)
    layer.weight.grad = torch.ones(1, 4)
    clipper = GradientClipper(layer, max_norm=1.0)
    norm = clipper.norm()
    clipper.clip(norm)
    assert float(norm) == 2.0
    assert torch.allclose(layer.weight.grad, torch.full((1, 4), 0.5), atol=1e-6)


@pytest.mark.parametrize("kind", [DummyClipper, LoggingOnlyClipper])
def test_those_that_do_not_clip_report_the_norm(kind: Any) -> None:
    layer = nn.Linear(4, 1, bias=False)
    layer.weight.grad = torch.full((1, 4), 50.0)
    clipper = kind(layer)
    norm = clipper.norm()
    clipper.clip(norm)
    assert float(norm) == 100.0
    assert torch.equal(layer.weight.grad, torch.full((1, 4), 50.0))
    layer.weight.grad[0, 2] = math.nan
    assert not torch.isfinite(clipper.norm())


def test_logging_only_knows_the_three_norms() -> None:
    layer = nn.Linear(4, 1, bias=False)
    layer.weight.grad = torch.tensor([[1.0, -2.0, 3.0, -4.0]])
    found = [float(LoggingOnlyClipper(layer, norm_type=norm_type).norm()) for norm_type in NORMS]
    assert found == pytest.approx([10, math.sqrt(30), 4])


def norms_with_one_bad_value(value: float) -> list[list[float]]:
    """For each rank that holds the bad value: the norms of every order."""
    rows = []
    for bad_rank in range(dist.get_world_size()):
        built = model()
        set_gradients(built)
        gradient = next(built.parameters()).grad
        assert isinstance(gradient, DTensor)
        if dist.get_rank() == bad_rank:
            gradient.to_local()[0, 0] = value
        clippers = [GradientClipper(built, norm_type=norm_type) for norm_type in NORMS] + [DummyClipper(built)]
        rows.append([float(clipper.norm()) for clipper in clippers])
    return rows


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_bad_value_on_any_rank_shows_in_every_norm_on_all_ranks(value: float) -> None:
    """A maximum over ranks drops a NaN when the other rank's number comes first; the guard would not see it."""
    for rows in run_ranks(2, norms_with_one_bad_value, value):
        assert [[math.isfinite(norm) for norm in norms] for norms in rows] == [[False] * 4] * 2


def test_frozen_parameters_and_those_without_gradient_do_not_count() -> None:
    built = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    built[0].weight.grad = torch.ones(2, 2)
    built[1].weight.grad = torch.full((2, 2), 100.0)
    built[1].weight.requires_grad_(False)
    assert float(GradientClipper(built).norm()) == 2.0


def test_wrong_settings_are_refused_together() -> None:
    with pytest.raises(ConfigError) as caught:
        GradientClipper(nn.Linear(2, 2), max_norm=0.0, norm_type=3)
    assert caught.value.problems == [
        "max_norm (0.0) must be above 0 and finite; use None to measure the norm without clipping",
        "norm_type (3) must be 1, 2 or 'inf'; set it to 2.0",
    ]
    for max_norm in (-1.0, math.nan, math.inf):
        with pytest.raises(ConfigError, match=r"max_norm \(.*\) must be above 0 and finite"):
            GradientClipper(nn.Linear(2, 2), max_norm=max_norm)
    with pytest.raises(ConfigError, match=r"norm_type \('two'\) must be 1, 2 or 'inf'; set it to 2.0"):
        LoggingOnlyClipper(nn.Linear(2, 2), norm_type="two")  # type: ignore[arg-type]
