"""From token windows to what a language model is trained on."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from modlib.components import component
from modlib.runtime.errors import DataError


@component("collate_fn", "gpt_2_llm_collator")
class LMCollator:
    """Inputs are a window without its last token, targets the same window without its first: shifted by one."""

    def __call__(self, windows: npt.ArrayLike) -> tuple[Tensor, Tensor]:
        """Collate one batch.

        Args:
            windows: Token ids (B, T + 1) of any integer type.

        Returns:
            inputs (B, T) and targets (B, T), both int64, contiguous and sharing no memory with the data.

        Raises:
            DataError: windows are not (B, T + 1) with T at least 1.
        """
        array: npt.NDArray[Any] = np.asarray(windows)
        if array.ndim != 2 or array.shape[1] < 2:
            raise DataError(f"shape of the windows {array.shape} must be (B, T + 1) with T >= 1; check the dataset")
        return _int64(array[:, :-1]), _int64(array[:, 1:])


def _int64(array: npt.NDArray[Any]) -> Tensor:
    return torch.from_numpy(array.astype(np.int64, order="C"))
