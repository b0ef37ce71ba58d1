from __future__ import annotations

import numpy as np
import pytest
import torch

from modlib.data.collate import LMCollator
from modlib.runtime.errors import DataError


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32, np.int64])
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
