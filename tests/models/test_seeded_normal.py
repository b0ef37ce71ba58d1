"""Any part of a parameter, cut along any axis, holds the values of the whole."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, empty

from modlib.models import seeded_normal
from modlib.models.seeded_normal import fill_normal
from tests.workers import run_ranks


def whole(*shape: int) -> Tensor:
    tensor = torch.empty(shape)
    fill_normal(tensor, seed=1, name="w", mean=0.5, std=2.0)
    return tensor


def test_chunks_join_without_repetition() -> None:
    values = whole(3 * seeded_normal.CHUNK + 17)
    assert values.unique().numel() > 0.9 * values.numel()
    assert values.mean() == pytest.approx(0.5, abs=0.01)
    assert values.std() == pytest.approx(2.0, abs=0.01)


@pytest.mark.parametrize("shape", [(), (1,), (5,), (3, 2), (2, 3, 4)])
def test_small_and_scalar_parameters(shape: tuple[int, ...]) -> None:
    assert torch.isfinite(whole(*shape)).all()
    assert torch.equal(whole(*shape), whole(*shape))


def test_strided_parameters_hold_the_same_values() -> None:
    tensor = torch.empty(7, 5).t()
    fill_normal(tensor, seed=1, name="w", mean=0.5, std=2.0)
    assert torch.equal(tensor, whole(5, 7))


def sharded(size: tuple[int, ...], placements: list[tuple[int, ...]]) -> list[Tensor]:
    mesh = init_device_mesh("cpu", (2,) if len(placements[0]) == 1 else (2, 2))
    found = []
    for dims in placements:
        tensor = empty(size, device_mesh=mesh, placements=[Replicate() if dim < 0 else Shard(dim) for dim in dims])
        fill_normal(tensor, seed=1, name="w", mean=0.5, std=2.0)
        found.append(tensor.full_tensor())
    return found


@pytest.mark.parametrize(
    ("world_size", "placements"),
    [
        (2, [(0,), (1,), (2,), (-1,)]),
        pytest.param(4, [(0, 0), (0, 1), (1, 0), (1, 2), (-1, 0), (-1, -1)], marks=pytest.mark.slow),
    ],
)
def test_every_placement_holds_the_same_values(world_size: int, placements: list[tuple[int, ...]]) -> None:
    size = (5, 7, 3)
    for found in run_ranks(world_size, sharded, size, placements):
        for tensor in found:
            assert torch.equal(tensor, whole(*size))
