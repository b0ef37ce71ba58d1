"""The same update on one, two and four ranks: same loss, same norm, same parameters."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

from modlib.distributed.clipping import GradientClipper
from modlib.distributed.fsdp import shard
from modlib.distributed.process_group import World
from modlib.models.gpt2 import GPT2
from modlib.models.initialization import ComposedInitializer
from modlib.nn.losses import CLMCrossEntropyLoss
from modlib.optim.groups import DecayGroups
from modlib.training.parts import assemble
from modlib.training.step import update
from tests.training.test_plain_loop import SEQ_LEN, VOCAB, batch
from tests.workers import run_ranks

STEPS = 4


def train_on_ranks(
    accumulate: int, masked: bool, precision: str = "float32"
) -> tuple[list[tuple[float, float]], torch.Tensor]:
    """(loss, norm) of each step and all parameters in one vector, of a global batch of 12 sequences."""
    rank = dist.get_rank() if dist.is_initialized() else 0
    size = dist.get_world_size() if dist.is_initialized() else 1
    with torch.device("meta"):
        model = GPT2(vocab_size=VOCAB, seq_len=SEQ_LEN, num_layers=2, num_heads=2, dim=32)
    if size > 1:
        shard(model, init_device_mesh("cpu", (size,)), precision)
    model.to_empty(device="cpu")
    ComposedInitializer()(model, 7)
    optimizer = torch.optim.AdamW(DecayGroups()(model), lr=1e-3, eps=1e-4, fused=True)
    scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
    world = World(rank=rank, local_rank=rank, size=size, device=torch.device("cpu"))
    parts = assemble(model, CLMCrossEntropyLoss(), optimizer, scheduler, GradientClipper, world, precision, False)
    lines = []
    for step in range(STEPS):
        inputs, targets = batch(step)
        if masked:
            targets[0, 3:] = -100
            targets[7] = -100
        micro = 12 // size // accumulate
        own = [
            slice((number * size + rank) * micro, (number * size + rank + 1) * micro) for number in range(accumulate)
        ]
        result = update(parts, [(inputs[part], targets[part]) for part in own], step)
        lines.append((result.mean_loss(), float(result.grad_norm)))
    whole = [p.full_tensor() if isinstance(p, DTensor) else p for p in model.parameters()]
    return lines, torch.cat([parameter.detach().flatten() for parameter in whole])


@pytest.mark.slow
@pytest.mark.parametrize("world_size", [2, pytest.param(4, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("accumulate", "masked"), [(1, False), (3, True)])
def test_sharded_equals_single(world_size: int, accumulate: int, masked: bool) -> None:
    if world_size == 4 and accumulate == 3:
        accumulate = 1  # 12 sequences are one micro-batch of 3 on each of 4 ranks
    lines, parameters = train_on_ranks(accumulate, masked)
    for ranks_lines, ranks_parameters in run_ranks(world_size, train_on_ranks, accumulate, masked):
        for single, sharded in zip(lines, ranks_lines, strict=True):
            assert sharded == pytest.approx(single, abs=1e-5)
        assert torch.allclose(ranks_parameters, parameters, atol=1e-5)


def test_bfloat16_computes_over_float32_weights() -> None:
    for lines, parameters in run_ranks(2, train_on_ranks, 1, False, "bfloat16"):
        reference, _ = train_on_ranks(1, False)
        assert parameters.dtype == torch.float32
        assert lines != reference
        assert [line[0] for line in lines] == pytest.approx([line[0] for line in reference], rel=0.02)
