"""What a model is fed: one tensor, or several by name, and the targets that go with them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

Inputs = Tensor | dict[str, Tensor]
Batch = tuple[Inputs, Tensor]
"""(inputs, targets); the first axis of every tensor is the sequence within the batch."""


def map_tensors(function: Callable[[Any], Any], inputs: Any) -> Any:
    """Apply a function to the tensor (or array), or to each of the named ones."""
    if isinstance(inputs, dict):
        return {name: function(value) for name, value in inputs.items()}
    return function(inputs)


def split(batch: Batch, size: int) -> list[Batch]:
    """Cut a batch along its first axis into batches of `size` sequences; views, no copies."""
    inputs, targets = batch
    pieces = targets.split(size)
    if isinstance(inputs, dict):
        cut = {name: value.split(size) for name, value in inputs.items()}
        return [({name: cut[name][i] for name in cut}, piece) for i, piece in enumerate(pieces)]
    return list(zip(inputs.split(size), pieces, strict=True))
