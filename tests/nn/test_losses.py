"""Summed cross-entropy: masks, dtypes, and batches that count nothing."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from modlib.nn.losses import CLMCrossEntropyLoss


def test_is_the_sum_over_unmasked_targets() -> None:
    logits, targets = torch.randn(2, 5, 11), torch.randint(11, (2, 5))
    targets[0, :3] = -100
    expected = sum(
        -logits[b, t].log_softmax(-1)[targets[b, t]] for b in range(2) for t in range(5) if targets[b, t] >= 0
    )
    torch.testing.assert_close(CLMCrossEntropyLoss()(logits, targets), expected)


def test_all_masked_is_zero_with_zero_gradients() -> None:
    logits = torch.randn(2, 5, 11, requires_grad=True)
    loss = CLMCrossEntropyLoss(ignore_index=7)(logits, torch.full((2, 5), 7))
    loss.backward()
    assert loss.item() == 0.0
    assert logits.grad is not None
    assert torch.equal(logits.grad, torch.zeros_like(logits))


def test_bfloat16_logits_are_reduced_in_float32() -> None:
    logits, targets = torch.randn(4, 64, 101).bfloat16(), torch.randint(101, (4, 64))
    loss = CLMCrossEntropyLoss()(logits, targets)
    assert loss.dtype == torch.float32
    exact = F.cross_entropy(logits.double().flatten(0, 1), targets.flatten(), reduction="sum")
    assert abs(loss.item() / exact.item() - 1) < 1e-6


def test_parts_add_up_to_the_whole() -> None:
    """What makes the loss independent of micro-batches: sums add, means do not."""
    logits, targets = torch.randn(6, 5, 11), torch.randint(11, (6, 5))
    targets[:2] = -100
    loss = CLMCrossEntropyLoss()
    parts = [loss(logits[i : i + 2], targets[i : i + 2]) for i in (0, 2, 4)]
    torch.testing.assert_close(sum(parts), loss(logits, targets))
