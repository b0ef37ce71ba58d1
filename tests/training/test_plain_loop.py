"""Fifty steps of modlib's update against a plain PyTorch loop, and accumulation against one large batch."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modlib.distributed.clipping import GradientClipper
from modlib.distributed.process_group import World
from modlib.models.gpt2 import GPT2
from modlib.models.initialization import ComposedInitializer
from modlib.nn.losses import CLMCrossEntropyLoss
from modlib.optim.groups import DecayGroups
from modlib.optim.schedules import LinearWarmupCosine
from modlib.training.parts import Parts, assemble
from modlib.training.step import update

ALONE = World(rank=0, local_rank=0, size=1, device=torch.device("cpu"))
STEPS, WARMUP, LR, VOCAB, SEQ_LEN = 50, 5, 3e-3, 61, 16


def small_model() -> GPT2:
    model = GPT2(vocab_size=VOCAB, seq_len=SEQ_LEN, num_layers=2, num_heads=2, dim=32)
    ComposedInitializer()(model, 7)
    return model


def batch(step: int, size: int = 12) -> tuple[Tensor, Tensor]:
    tokens = torch.randint(0, VOCAB, (size, SEQ_LEN + 1), generator=torch.Generator().manual_seed(step))
    tokens[:, 1::2] = tokens[:, 0:-1:2]  # something to learn: every second token repeats the one before
    return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()


def modlib_parts(model: nn.Module, loss: Any = None, world: World = ALONE) -> Parts:
    optimizer = torch.optim.AdamW(DecayGroups()(model), lr=LR, betas=(0.9, 0.95), weight_decay=0.1)
    scheduler = LinearWarmupCosine(optimizer, warmup_steps=WARMUP, num_steps=STEPS)
    loss = loss or CLMCrossEntropyLoss()
    return assemble(model, loss, optimizer, scheduler, GradientClipper, world, "float32", False)


def plain_losses(model: nn.Module) -> list[float]:
    """The usual loop, written without anything of modlib but the model."""
    decayed = [p for p in model.parameters() if p.dim() >= 2]
    kept = [p for p in model.parameters() if p.dim() < 2]
    optimizer = torch.optim.AdamW([{"params": decayed, "weight_decay": 0.1}, {"params": kept, "weight_decay": 0.0}],
                                  lr=LR, betas=(0.9, 0.95))  # fmt: skip
    losses = []
    for step in range(STEPS):
        factor = (step + 1) / (WARMUP + 1)
        if step >= WARMUP:
            factor = 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * (step - WARMUP) / (STEPS - WARMUP)))
        for group in optimizer.param_groups:
            group["lr"] = LR * factor
        inputs, targets = batch(step)
        optimizer.zero_grad()
        loss = F.cross_entropy(model(inputs).view(-1, VOCAB), targets.view(-1))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_fifty_steps_equal_a_plain_loop() -> None:
    parts = modlib_parts(small_model())
    ours = [update(parts, [batch(step)], step).mean_loss() for step in range(STEPS)]
    plain = plain_losses(small_model())
    assert max(abs(a - b) for a, b in zip(ours, plain, strict=True)) < 1e-5
    assert ours[-1] < 0.9 * ours[0]


def losses_with_accumulation(sizes: list[int], masked: bool) -> list[float]:
    parts = modlib_parts(small_model())
    losses = []
    for step in range(10):
        inputs, targets = batch(step)
        if masked:  # unevenly, so that a mean of means would differ
            targets[0, 3:] = -100
            targets[5] = -100
        micro_batches = list(zip(inputs.split(sizes), targets.split(sizes), strict=True))
        losses.append(update(parts, micro_batches, step).mean_loss())
    return losses


def test_accumulation_does_not_change_the_objective() -> None:
    for masked in (False, True):
        whole, parts = losses_with_accumulation([12], masked), losses_with_accumulation([4, 4, 4], masked)
        assert max(abs(a - b) for a, b in zip(whole, parts, strict=True)) < 1e-6


def test_an_all_masked_batch_changes_nothing_but_decay_and_gives_zero_loss() -> None:
    parts = modlib_parts(small_model())
    inputs, targets = batch(0)
    result = update(parts, [(inputs, torch.full_like(targets, -100))], 1)
    assert result.mean_loss() == 0.0
    assert all(torch.isfinite(parameter).all() for parameter in parts.model.parameters())
