from __future__ import annotations

import numpy as np
import pytest
import torch

from modlib.data.batches.collate import LMCollator
from modlib.data.datasets.packed_dataset import PackedDataset
from modlib.data.datasets.windows import Windows, padded
from modlib.models.gpt2 import GPT2
from modlib.nn.losses import CLMCrossEntropyLoss
from modlib.runtime.errors import DataError
from tests.data.conftest import MakePacked


def test_a_mask_that_is_one_value_seen_everywhere() -> None:
    windows = np.arange(10).reshape(2, 5)
    for value, expected in ((np.True_, [[1, 2, 3, 4], [6, 7, 8, 9]]), (np.False_, [[-100] * 4] * 2)):
        mask = np.broadcast_to(value, windows.shape)
        _, targets = LMCollator()(Windows(windows, mask, mask))
        assert targets.tolist() == expected


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32, np.int32, np.int64])
def test_targets_are_the_inputs_shifted_by_one(dtype: type) -> None:
    windows = np.arange(15, dtype=dtype).reshape(3, 5)
    inputs, targets = LMCollator()(windows)
    assert inputs.tolist() == [[0, 1, 2, 3], [5, 6, 7, 8], [10, 11, 12, 13]]
    assert targets.tolist() == [[1, 2, 3, 4], [6, 7, 8, 9], [11, 12, 13, 14]]
    for tensor in (inputs, targets):
        assert tensor.dtype == torch.int64
        assert tensor.is_contiguous()
    inputs.zero_()
    assert windows[0].tolist() == [0, 1, 2, 3, 4]


def test_large_ids_survive() -> None:
    inputs, _ = LMCollator()(np.array([[2**32 - 1, 0]], np.uint32))
    assert inputs.item() == 2**32 - 1


def test_list_of_windows() -> None:
    inputs, _ = LMCollator()([np.arange(3), np.arange(3)])
    assert inputs.shape == (2, 2)


@pytest.mark.parametrize("shape", [(3,), (3, 1), (2, 3, 4)])
def test_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match=r"shape of the windows \(.*\) must be \(B, T \+ 1\) with T >= 1"):
        LMCollator()(np.zeros(shape, np.int64))


def test_padding_and_masked_tokens_are_no_targets() -> None:
    windows = padded([np.array([5, 6, 7], np.uint16), np.array([1], np.uint16)], 5, 9)
    inputs, targets = LMCollator()(windows)
    assert inputs.tolist() == [[5, 6, 7, 9], [1, 9, 9, 9]]
    assert targets.tolist() == [[6, 7, -100, -100], [-100] * 4]
    pairs = [(np.arange(4), np.array([True, False, True, True]))]
    assert LMCollator(ignore_index=-1)(pairs)[1].tolist() == [[-1, 2, 3]]


def test_attention_mask_is_of_tokens_not_of_targets() -> None:
    pairs = [(np.arange(1, 5), np.array([False, False, True, True])), padded([np.arange(1, 3)], 4, 0).row(0)]
    inputs, targets = LMCollator(attention_mask=True)(pairs)
    assert isinstance(inputs, dict)
    assert list(inputs) == ["input_ids", "attention_mask"]
    assert inputs["input_ids"].tolist() == [[1, 2, 3], [1, 2, 0]]
    assert inputs["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]
    assert inputs["attention_mask"].dtype == torch.int64
    assert targets.tolist() == [[-100, 3, 4], [2, -100, -100]]


def test_what_is_no_id_is_refused() -> None:
    with pytest.raises(DataError, match=r"type of the token ids \(float64\) must be an integer type; check the data"):
        LMCollator()(np.zeros((2, 3)))


def test_all_masked_batch_has_loss_zero_and_no_nan() -> None:
    _, targets = LMCollator()([(np.arange(4), np.zeros(4, np.bool_))])
    logits = torch.randn(1, 3, 5, requires_grad=True)
    loss = CLMCrossEntropyLoss()(logits, targets)
    loss.backward()
    assert loss.item() == 0.0
    assert logits.grad is not None
    assert logits.grad.abs().sum() == 0


def test_a_vocabulary_of_bytes_trains(make_packed: MakePacked) -> None:
    """Ids of one byte come out of the file as uint8, which an embedding would refuse."""
    dataset = PackedDataset(path=str(make_packed(300, vocab_size=256)), seq_len=8)
    rows = dataset.__getitems__([0, 1, 31])
    assert rows.dtype == np.uint8
    inputs, targets = LMCollator()(rows)
    model = GPT2(vocab_size=256, seq_len=8, num_layers=1, num_heads=2, dim=8)
    loss = CLMCrossEntropyLoss()(model(inputs), targets)
    loss.backward()
    assert torch.isfinite(loss)
