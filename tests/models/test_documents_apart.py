"""Training on packed documents with a mask equals training on each of them alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from modlib.models.gpt2 import GPT2
from modlib.models.lora import LoRAModel
from modlib.nn.losses import ChunkedCLMCrossEntropyLoss, CLMCrossEntropyLoss
from modlib.runtime.errors import ConfigError

VOCAB, LENGTH = 61, 24
VARIANTS: dict[str, dict[str, Any]] = {
    "learned": {},
    "rotary, grouped": {"position": "rotary", "num_kv_heads": 2, "norm": nn.RMSNorm, "bias": False, "qk_norm": True},
    "half rotary, untied": {"position": "rotary", "rope_fraction": 0.5, "tie_embeddings": False},
    "none, multi-query": {"position": "none", "num_kv_heads": 1},
}


def small(**changes: Any) -> GPT2:
    torch.manual_seed(0)
    return GPT2(**{"vocab_size": VOCAB, "seq_len": LENGTH, "num_layers": 2, "num_heads": 4, "dim": 32, **changes})


def packed(rows: list[list[int]]) -> tuple[dict[str, Tensor], Tensor, list[tuple[Tensor, Tensor]]]:
    """A batch of documents of these lengths, and each document by itself; a document's last token has no target."""
    torch.manual_seed(1)
    tokens = torch.randint(VOCAB, (len(rows), LENGTH))
    targets = torch.randint(VOCAB, (len(rows), LENGTH))
    ids = torch.zeros(len(rows), LENGTH, dtype=torch.int32)
    alone = []
    for row, lengths in enumerate(rows):
        start = 0
        for number, length in enumerate(lengths):
            ids[row, start : start + length] = number
            targets[row, start + length - 1] = -100
            alone.append(
                (tokens[row : row + 1, start : start + length], targets[row : row + 1, start : start + length])
            )
            start += length
        ids[row, start:] = len(lengths)  # padding
        targets[row, start:] = -100
    return {"input_ids": tokens, "document_ids": ids}, targets, alone


def gradients(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_equal_to_alone(model: nn.Module, rows: list[list[int]], of: Callable[[Any, Tensor], Tensor]) -> None:
    inputs, targets, alone = packed(rows)
    together = of(inputs, targets)
    single = torch.stack([of(*document) for document in alone]).sum()
    torch.testing.assert_close(together, single, rtol=1e-5, atol=1e-5)
    found, expected = gradients(model, together), gradients(model, single)
    assert found.keys() == expected.keys()
    for name in found:
        torch.testing.assert_close(
            found[name], expected[name], rtol=1e-5, atol=1e-5, msg=lambda text, n=name: f"{n}: {text}"
        )


@st.composite
def lengths(draw: st.DrawFn) -> list[int]:
    """Documents that fill a row, or leave padding at its end."""
    found: list[int] = []
    while sum(found) < LENGTH and (not found or draw(st.booleans())):
        found.append(draw(st.integers(1, LENGTH - sum(found))))
    return found


@given(st.sampled_from(list(VARIANTS)), st.lists(lengths(), min_size=1, max_size=3))
@settings(max_examples=40)
def test_losses_and_gradients_are_those_of_each_document_alone(variant: str, rows: list[list[int]]) -> None:
    model = small(**VARIANTS[variant])
    assert_equal_to_alone(model, rows, lambda inputs, targets: CLMCrossEntropyLoss()(model(inputs), targets))


ROWS = [[5, 1, 9, 9], [24], [2, 3]]


def test_without_the_mask_they_are_not() -> None:
    model = small()
    inputs, targets, alone = packed(ROWS)
    loss = CLMCrossEntropyLoss()
    together = loss(model(inputs["input_ids"]), targets)
    single = sum(loss(model(tokens), wanted) for tokens, wanted in alone)
    assert abs((together - single).item()) > 1e-3


def test_a_loss_that_never_holds_all_logits() -> None:
    model, loss = small(), ChunkedCLMCrossEntropyLoss()

    def of(inputs: Any, targets: Tensor) -> Tensor:
        return model(inputs, head=lambda hidden, weight: loss.of_hidden(hidden, weight, targets))

    assert_equal_to_alone(model, ROWS, of)


def test_with_adapters() -> None:
    model = LoRAModel(lambda: small(position="rotary"), r=2, alpha=4.0, targets=["qkv", "out"])
    assert_equal_to_alone(model, ROWS, lambda inputs, targets: CLMCrossEntropyLoss()(model(inputs), targets))


class Recomputed(nn.Module):
    """A block whose activations are computed again in backward."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, *args: Any) -> Any:
        return checkpoint(self.block, *args, use_reentrant=False)


@pytest.mark.parametrize("position", ["learned", "rotary"])
def test_activations_computed_again_give_the_same_gradients(position: str) -> None:
    plain, again = small(position=position), small(position=position)
    again.blocks = nn.ModuleList(Recomputed(block) for block in again.blocks)
    inputs, targets, _ = packed(ROWS)
    expected, found = (gradients(model, CLMCrossEntropyLoss()(model(inputs), targets)) for model in (plain, again))
    for (name, one), (_, other) in zip(expected.items(), found.items(), strict=True):
        assert torch.equal(one, other), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_document_is_what_it_is_without_a_mask(dtype: torch.dtype) -> None:
    model = small(position="rotary").to(dtype)
    tokens = torch.randint(VOCAB, (2, LENGTH))
    with torch.no_grad():
        masked = model({"input_ids": tokens, "document_ids": torch.zeros_like(tokens)})
        torch.testing.assert_close(masked, model(tokens), rtol=2e-2 if dtype == torch.bfloat16 else 1e-5, atol=1e-2)


def test_in_autocast() -> None:
    model = small()
    inputs, _, _ = packed(ROWS)
    with torch.no_grad():
        exact = model(inputs)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rounded = model(inputs)
    assert rounded.dtype == torch.bfloat16
    torch.testing.assert_close(rounded.float(), exact, rtol=0.05, atol=0.05)


def test_other_inputs_are_refused() -> None:
    tokens = torch.zeros(1, 4, dtype=torch.int64)
    for inputs in ({"input_ids": tokens, "attention_mask": tokens}, {"document_ids": tokens}):
        with pytest.raises(
            ConfigError, match=r"inputs of GPT2 \(.*\) must be input_ids and, at most, document_ids; a c"
        ):
            small()(inputs)
