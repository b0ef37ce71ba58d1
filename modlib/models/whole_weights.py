"""A model's weights one at a time, wherever they are: in memory, in a checkpoint, with adapters merged."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor, nn

from modlib.models.lora import adapters, merged_weight
from modlib.models.weights import named_state
from modlib.nn.lora_layers import LoRALayer
from modlib.runtime.file_spans import FileSpan

ALL = slice(None)


class Weights(Protocol):
    """Gives whole tensors by their plain names, on the CPU."""

    def read(self, name: str, rows: slice = ALL) -> Tensor:
        """One tensor, or these rows of it; not to be changed."""
        ...

    def spans(self, name: str) -> list[FileSpan] | None:
        """Where the bytes of a contiguous tensor are, in order, if they are in files; None where it has to be read."""
        ...

    def finish(self) -> None:
        """Called when everything is read; raises where something that was given is not what had been saved."""
        ...


class ModelWeights:
    """Of a model in memory; sharded by FSDP2, every rank must read the same names.

    Args:
        model: The tensors are its own, not copies.
    """

    def __init__(self, model: nn.Module) -> None:
        self._state = named_state(model)

    def read(self, name: str, rows: slice = ALL) -> Tensor:
        """See Weights."""
        tensor: Any = self._state[name].detach()
        tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor  # a DTensor
        whole: Tensor = tensor if rows == ALL else tensor[rows]
        return whole.cpu()

    def spans(self, _: str) -> list[FileSpan] | None:
        """None: they are in memory."""
        return None

    def finish(self) -> None:
        """Nothing to check."""


class MergedWeights:
    """Of the plain model, with its adapters merged into the layers that have one.

    Args:
        weights: Of the model with its adapters.
        model: Says which layers are adapted; may be on meta.
    """

    def __init__(self, weights: Weights, model: nn.Module) -> None:
        self._weights, self._layers = weights, dict(adapters(model, remove_duplicate=False))

    def read(self, name: str, rows: slice = ALL) -> Tensor:
        """See Weights."""
        module, layer = self._adapted(name)
        if layer is None:
            return self._weights.read(name, rows)
        a, b = (self._weights.read(f"{module}.{adapter}") for adapter in ("lora_A", "lora_B"))
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            return merged_weight(layer, self._weights.read(name), a, b)[rows]

    def spans(self, name: str) -> list[FileSpan] | None:
        """See Weights."""
        return None if self._adapted(name)[1] is not None else self._weights.spans(name)

    def _adapted(self, name: str) -> tuple[str, LoRALayer | None]:
        """The module that holds a tensor, and its adapter where the tensor is an adapted weight."""
        module, _, leaf = name.rpartition(".")
        return module, self._layers.get(module) if leaf == "weight" else None

    def finish(self) -> None:
        """See Weights."""
        self._weights.finish()
