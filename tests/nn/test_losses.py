"""Summed cross-entropy: masks, dtypes, and batches that count nothing."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from modlib.nn.losses import ChunkedCLMCrossEntropyLoss, CLMCrossEntropyLoss
from modlib.runtime.errors import ConfigError
from tests.models.live_memory import LiveMemory


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


@pytest.mark.parametrize("num_chunks", [1, 3, 8, 1000])
def test_chunked_equals_the_whole_in_value_and_gradients(num_chunks: int) -> None:
    torch.manual_seed(0)
    hidden, weight = torch.randn(3, 17, 8), torch.randn(50, 8)
    targets = torch.randint(50, (3, 17))
    targets[1, 4:] = -100
    results = []
    for loss in (CLMCrossEntropyLoss(), ChunkedCLMCrossEntropyLoss(num_chunks=num_chunks)):
        h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        value = (
            loss.of_hidden(h, w, targets) if isinstance(loss, ChunkedCLMCrossEntropyLoss) else loss(h @ w.T, targets)
        )
        value.backward()
        assert h.grad is not None
        assert w.grad is not None
        results.append((value.detach(), h.grad, w.grad))
    for whole, chunked in zip(*results, strict=True):
        torch.testing.assert_close(chunked, whole)


def test_chunked_all_masked_is_zero_with_zero_gradients() -> None:
    hidden, weight = torch.randn(2, 5, 8, requires_grad=True), torch.randn(11, 8, requires_grad=True)
    loss = ChunkedCLMCrossEntropyLoss(num_chunks=3).of_hidden(hidden, weight, torch.full((2, 5), -100))
    loss.backward()
    assert loss.item() == 0.0
    for tensor in (hidden, weight):
        assert tensor.grad is not None
        assert torch.equal(tensor.grad, torch.zeros_like(tensor))


def peak_bytes(loss: CLMCrossEntropyLoss) -> int:
    """Most bytes alive at once in forward and backward of 512 tokens and a vocabulary of 4096."""
    hidden, weight = torch.randn(1, 512, 16, requires_grad=True), torch.randn(4096, 16, requires_grad=True)
    targets = torch.randint(4096, (1, 512))
    with LiveMemory(hidden, weight, targets) as memory:
        if isinstance(loss, ChunkedCLMCrossEntropyLoss):
            loss.of_hidden(hidden, weight, targets).backward()
        else:
            loss(F.linear(hidden, weight), targets).backward()
    return memory.peak


def test_chunked_holds_a_fraction_of_the_logits() -> None:
    logits = 512 * 4096 * 4
    whole, chunked = peak_bytes(CLMCrossEntropyLoss()), peak_bytes(ChunkedCLMCrossEntropyLoss(num_chunks=16))
    assert whole > 2 * logits  # and their gradient
    assert chunked < logits / 3
    assert chunked < whole / 8


def test_chunked_refuses_no_chunks() -> None:
    with pytest.raises(ConfigError, match=r"num_chunks \(0\) must be at least 1; set it to 8"):
        ChunkedCLMCrossEntropyLoss(num_chunks=0)
