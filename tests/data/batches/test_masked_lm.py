"""Masked language modelling: what is hidden, what is asked for, and that the choice can be made again."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from modlib.data.batches.masked_lm import MaskedLMCollator
from modlib.data.datasets.windows import padded
from modlib.runtime.errors import ConfigError, DataError

WINDOWS = np.random.default_rng(0).integers(5, 1000, (64, 129))


def test_shares_are_berts() -> None:
    inputs, targets = MaskedLMCollator(mask_id=4, vocab_size=1000)(WINDOWS)
    assert isinstance(inputs, torch.Tensor)
    original = torch.from_numpy(WINDOWS[:, :-1])
    asked = targets != -100
    assert torch.equal(targets[asked], original[asked])
    assert torch.equal(inputs[~asked], original[~asked])
    assert asked.float().mean().item() == pytest.approx(0.15, abs=0.015)
    assert (inputs[asked] == 4).float().mean().item() == pytest.approx(0.8, abs=0.04)
    assert (inputs[asked] == targets[asked]).float().mean().item() == pytest.approx(0.1, abs=0.03)


def test_a_window_is_masked_alike_in_any_batch_and_otherwise_with_another_seed() -> None:
    collate = MaskedLMCollator(mask_id=4, vocab_size=1000)
    whole = collate(WINDOWS)
    part = collate(WINDOWS[10:12].astype(np.uint16))
    assert torch.equal(whole[0][10:12], part[0])  # type: ignore[index]
    assert torch.equal(whole[1][10:12], part[1])
    assert not torch.equal(whole[1], MaskedLMCollator(mask_id=4, vocab_size=1000, seed=1)(WINDOWS)[1])


def test_padding_and_special_tokens_are_never_targets() -> None:
    rows = [np.full(20, 7), np.arange(10) + 3]
    collate = MaskedLMCollator(mask_id=1, vocab_size=50, share=0.9, special_ids=[7], attention_mask=True)
    inputs, targets = collate(padded(rows, 33, pad_id=0))
    assert isinstance(inputs, dict)
    assert inputs["attention_mask"].sum(1).tolist() == [20, 10]
    assert (targets[0] == -100).all()
    assert (targets[1, 10:] == -100).all()
    assert (targets[1] != -100).sum() > 3
    assert (inputs["input_ids"][0, :20] == 7).all()


def test_wrong_values_are_all_named() -> None:
    with pytest.raises(ConfigError) as caught:
        MaskedLMCollator(mask_id=-1, vocab_size=50, share=0.0, hidden=0.8, random=0.3, seed=-1)
    assert caught.value.problems == [
        "mask_id (-1) must be at least 0; ask the tokenizer",
        "share (0.0) must be in (0, 1); BERT's is 0.15",
        "hidden (0.8) and random (0.3) must be at least 0 and at most 1 together",
        "seed (-1) must be at least 0; choose another seed",
    ]
    with pytest.raises(DataError, match=r"shape of the windows \(3,\) must be \(B, T \+ 1\)"):
        MaskedLMCollator(mask_id=1, vocab_size=9)([1, 2, 3])
