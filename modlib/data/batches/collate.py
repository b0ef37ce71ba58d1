"""From token windows to what a language model is trained on."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from modlib.components import component
from modlib.data.batches.batch import Batch
from modlib.data.datasets.windows import Windows, as_windows
from modlib.runtime.errors import DataError


class Collator(Protocol):
    """Makes a batch, inputs and targets, of samples of a dataset. It must survive pickling.

    It may have `hands_on_document_ids = True`: it keeps the documents of a window apart.
    """

    def __call__(self, samples: Any, /) -> Batch: ...


@component("collate_fn", "gpt_2_llm_collator")
class LMCollator:
    """Inputs are a window without its last token, targets the same window without its first: shifted by one.

    A target that is padding, or that the dataset masked, is ignore_index. Padding stands at the end, where a causal
    model's real tokens cannot see it, so that such a model needs no attention mask.

    Of windows whose documents are kept apart (`intra_document_masking` of a dataset), inputs are named and have
    "document_ids" (B, T) int32 besides "input_ids".

    Args:
        attention_mask: Whether inputs are {"input_ids": (B, T), "attention_mask": (B, T)}, for models that take them
            so; the mask is int64, 1 at tokens and 0 at padding.
        ignore_index: Written where a target does not count; the loss's.
    """

    hands_on_document_ids = True

    def __init__(self, *, attention_mask: bool = False, ignore_index: int = -100) -> None:
        self.attention_mask = attention_mask
        self.ignore_index = ignore_index

    def __call__(self, samples: npt.ArrayLike | Windows) -> Batch:
        """Collate one batch.

        Args:
            samples: Token ids (B, T + 1) of any integer type, or Windows, or a sequence of samples: see `as_windows`.

        Returns:
            inputs (B, T), alone or named, and targets (B, T); int64, contiguous and sharing no memory with the data.

        Raises:
            DataError: samples are not (B, T + 1) with T at least 1, or their ids are not integers.
        """
        windows = as_windows(samples)
        ids = windows.ids
        if ids.ndim != 2 or ids.shape[1] < 2:
            raise DataError(f"shape of the windows {ids.shape} must be (B, T + 1) with T >= 1; check the dataset")
        if ids.dtype.kind not in "iu":
            raise DataError(f"type of the token ids ({ids.dtype}) must be an integer type; check the dataset")
        inputs, targets = _int64(ids[:, :-1]), _int64(ids[:, 1:])
        if not windows.is_plain and (masked := ~windows.trained[:, 1:]).any():
            targets[torch.from_numpy(masked)] = self.ignore_index
        named = {}
        if self.attention_mask:
            named["attention_mask"] = _int64(windows.present[:, :-1])
        if windows.document_ids is not None:
            named["document_ids"] = torch.from_numpy(windows.document_ids[:, :-1].copy())
        return {"input_ids": inputs, **named} if named else inputs, targets


def _int64(array: npt.NDArray[Any]) -> Tensor:
    return torch.from_numpy(array.astype(np.int64, order="C"))
