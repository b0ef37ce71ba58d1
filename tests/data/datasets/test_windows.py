from __future__ import annotations

import numpy as np
import pytest

from modlib.data.datasets.windows import Windows, as_windows, padded
from modlib.runtime.errors import DataError


def test_padding_is_at_the_end_and_never_trained() -> None:
    windows = padded([np.array([5, 6], np.uint8), np.array([7, 8, 9, 1], np.uint8)], 4, 3, [10, 11])
    assert windows.ids.tolist() == [[5, 6, 3, 3], [7, 8, 9, 1]]
    assert windows.ids.dtype == np.uint8
    assert windows.present.tolist() == windows.trained.tolist() == [[True, True, False, False], [True] * 4]
    row = windows.row(0)
    assert row.ids.tolist() == [5, 6, 3, 3]
    assert row.index is not None
    assert row.index.tolist() == [10]


def test_rows_of_different_integer_types_become_int64() -> None:
    assert padded([np.zeros(2, np.uint8), np.zeros(2, np.uint32)], 2, 0).ids.dtype == np.int64


def test_samples_of_every_form_in_one_batch() -> None:
    plain = np.array([1, 2, 3])
    masked = (np.array([4, 5, 6]), np.array([False, True, False]))
    short = padded([np.array([7, 8])], 3, 0, [4]).row(0)
    windows = as_windows([plain, masked, short])
    assert windows.ids.tolist() == [[1, 2, 3], [4, 5, 6], [7, 8, 0]]
    assert windows.trained.tolist() == [[True] * 3, [False, True, False], [True, True, False]]
    assert windows.present.tolist() == [[True] * 3, [True] * 3, [True, True, False]]
    assert windows.index is None
    assert as_windows(windows) is windows
    both = as_windows([short, short])
    assert both.index is not None
    assert both.index.tolist() == [4, 4]


def test_two_windows_in_a_tuple_are_two_windows() -> None:
    assert as_windows((np.arange(3), np.arange(3))).ids.shape == (2, 3)
    assert as_windows([[1, 2], [3, 4]]).ids.tolist() == [[1, 2], [3, 4]]


def test_lengths_that_differ_are_refused() -> None:
    with pytest.raises(DataError, match=r"lengths of the windows \(\[2, 3\]\) must be equal; pad the samples"):
        as_windows([np.arange(2), np.arange(3)])
    mask = np.ones(2, np.bool_)
    with pytest.raises(DataError, match=r"shapes of ids and masks of a batch \(\[\(2,\), \(3,\)\]\) must be equal"):
        as_windows([(np.arange(3), mask)])
    with pytest.raises(DataError, match="must be equal"):
        as_windows([Windows(np.arange(2), mask, mask), np.arange(3)])
