"""Layers with a low-rank adapter beside their frozen weight.

An adapted layer is the original object with another class: its parameters keep their names and their values, hooks and
shardings stay, and two parameters come with it, `lora_A` and `lora_B`. The weight itself is never touched, in train()
or eval() alike; `delta` says what a merged weight would have on top.
"""

from __future__ import annotations

import math
import sys
from functools import cache
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SUPPORTED = "Linear, Embedding, Conv1d, Conv2d, Conv3d and transformers' Conv1D"


class LoRALayer(nn.Module):
    """What all adapted layers have; a second parent beside the layer's own class.

    Its update of the weight is scaling * delta(lora_A, lora_B), which is 0 at the start.

    Source: Hu et al. 2021, LoRA, section 4.1.
    """

    weight: Tensor
    lora_A: nn.Parameter
    lora_B: nn.Parameter
    scaling: float
    lora_dropout: float

    def adapter_shapes(self, r: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Shapes of lora_A and lora_B at rank r."""
        raise NotImplementedError

    def delta(self, a: Tensor, b: Tensor) -> Tensor:
        """The update before scaling, in the shape of the weight, from whole (unsharded) adapters."""
        raise NotImplementedError

    def _dropped(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.lora_dropout, self.training) if self.lora_dropout else x

    def extra_repr(self) -> str:
        """The layer's own description and the adapter's."""
        adapter = f"r={self.lora_A.shape[0]}, scaling={self.scaling:g}, lora_dropout={self.lora_dropout:g}"
        return ", ".join(filter(None, [super().extra_repr(), adapter]))


class LoRALinear(LoRALayer, nn.Linear):
    """x (..., in) to x W^T + bias + scaling * dropout(x) A^T B^T, with A (r, in) and B (out, r)."""

    def adapter_shapes(self, r: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """See LoRALayer."""
        return (r, self.in_features), (self.out_features, r)

    def delta(self, a: Tensor, b: Tensor) -> Tensor:
        """See LoRALayer."""
        return b @ a

    def forward(self, x: Tensor) -> Tensor:
        """Map x (..., in) to (..., out)."""
        update = F.linear(F.linear(self._dropped(x), self.lora_A), self.lora_B)
        return nn.Linear.forward(self, x) + update * self.scaling


class LoRAEmbedding(LoRALayer, nn.Embedding):
    """Rows of W + scaling * A^T B^T, with A (r, V) and B (dim, r). Nothing is dropped: the inputs are ids."""

    def adapter_shapes(self, r: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """See LoRALayer."""
        return (r, self.num_embeddings), (self.embedding_dim, r)

    def delta(self, a: Tensor, b: Tensor) -> Tensor:
        """See LoRALayer."""
        return (b @ a).T

    def forward(self, x: Tensor) -> Tensor:
        """Map ids x (...) to (..., dim)."""
        # a sparse gradient of a transposed table does not exist, so that option ends at the frozen weight
        rows = F.embedding(x, self.lora_A.T, self.padding_idx, scale_grad_by_freq=self.scale_grad_by_freq)
        return nn.Embedding.forward(self, x) + F.linear(rows, self.lora_B) * self.scaling


class _LoRAConv(LoRALayer):
    """The convolution and, beside it, A with its kernel, stride, padding and groups, then B of kernel size 1.

    A is (r, in / groups, kernel...) and B (out, r / groups, 1...), so that every group of outputs depends on its own
    group of inputs alone, as in the layer itself: the update is a weight of the layer's own shape.
    """

    groups: int
    in_channels: int
    out_channels: int
    kernel_size: tuple[int, ...]

    def adapter_shapes(self, r: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """See LoRALayer."""
        ones = (1,) * len(self.kernel_size)
        return (r, self.in_channels // self.groups, *self.kernel_size), (self.out_channels, r // self.groups, *ones)

    def delta(self, a: Tensor, b: Tensor) -> Tensor:
        """See LoRALayer."""
        rank, groups = a.shape[0], self.groups
        a, b = a.reshape(groups, rank // groups, -1), b.reshape(groups, -1, rank // groups)
        return (b @ a).reshape(self.weight.shape)

    def forward(self, x: Tensor) -> Tensor:
        """Map x (B, in, ...) to (B, out, ...)."""
        own = cast(Any, self)._conv_forward
        convolve = (F.conv1d, F.conv2d, F.conv3d)[len(self.kernel_size) - 1]
        update = convolve(own(self._dropped(x), self.lora_A, None), self.lora_B, groups=self.groups)
        return cast(Tensor, own(x, self.weight, cast(Any, self).bias) + update * self.scaling)


class LoRAConv1d(_LoRAConv, nn.Conv1d):
    """torch's Conv1d with an adapter."""


class LoRAConv2d(_LoRAConv, nn.Conv2d):
    """torch's Conv2d with an adapter."""


class LoRAConv3d(_LoRAConv, nn.Conv3d):
    """torch's Conv3d with an adapter."""


class LoRATransposedLinear(LoRALayer):
    """transformers' Conv1D, a Linear whose weight is (in, out), with A (r, in) and B (out, r)."""

    def adapter_shapes(self, r: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """See LoRALayer."""
        size_in, size_out = self.weight.shape
        return (r, size_in), (size_out, r)

    def delta(self, a: Tensor, b: Tensor) -> Tensor:
        """See LoRALayer."""
        return (b @ a).T

    def forward(self, x: Tensor) -> Tensor:
        """Map x (..., in) to (..., out)."""
        update = F.linear(F.linear(self._dropped(x), self.lora_A), self.lora_B)
        return cast(Tensor, super().forward(x) + update * self.scaling)


_ADAPTED: dict[type, type[LoRALayer]] = {
    nn.Linear: LoRALinear,
    nn.Embedding: LoRAEmbedding,
    nn.Conv1d: LoRAConv1d,
    nn.Conv2d: LoRAConv2d,
    nn.Conv3d: LoRAConv3d,
}


@cache
def _over(kind: type) -> type[LoRALayer]:
    return type(LoRATransposedLinear.__name__, (LoRATransposedLinear, kind), {"__module__": __name__})


def _adapted_class(kind: type) -> type[LoRALayer] | None:
    """The class a layer of this class gets. A subclass has none: its forward may be another."""
    transformers = sys.modules.get("transformers.pytorch_utils")  # a model that has such layers has imported it
    if transformers is not None and kind is transformers.Conv1D:
        return _over(kind)
    return _ADAPTED.get(kind)


def is_layer(module: nn.Module) -> bool:
    """Whether it is a layer of a class that can be adapted, or of one derived from it."""
    return any(_adapted_class(kind) is not None for kind in type(module).__mro__)


def refusal(module: nn.Module, r: int) -> str | None:
    """Why a layer cannot be adapted with rank r, phrased to follow its name in an error; None if it can.

    Args:
        module: One that `is_layer`.
        r: Rank.
    """
    if isinstance(module, LoRALayer):
        return "has an adapter already; adapt a layer once"
    if _adapted_class(type(module)) is None:
        return f"is a {type(module).__name__}, must be exactly one of {SUPPORTED}; its forward may not be theirs"
    if module._parameters.get("weight") is None:
        return "must have its weight as a parameter; it is computed from others (weight_norm?)"
    if isinstance(module, nn.Embedding) and module.max_norm is not None:
        return f"has max_norm ({module.max_norm}), must have None: the lookup would rescale the frozen weight in place"
    groups = getattr(module, "groups", 1)
    if r % groups:
        return f"has groups ({groups}), which must divide r ({r}); nearest valid r: {math.ceil(r / groups) * groups}"
    return None


def adapt(module: nn.Module, *, r: int, alpha: float, dropout: float) -> LoRALayer:
    """Turn a layer into its adapted class, in place; the adapters are empty and trainable.

    Args:
        module: One that `refusal` has nothing against; on any device, meta too.
        r: Rank of the update.
        alpha: The update is scaled by alpha / r.
        dropout: Share of the adapter's inputs dropped in training.
    """
    kind = _adapted_class(type(module))
    assert kind is not None, type(module).__name__
    module.__class__ = kind
    layer = cast(LoRALayer, module)
    for name, shape in zip(("lora_A", "lora_B"), layer.adapter_shapes(r), strict=True):
        empty = torch.empty(shape, dtype=layer.weight.dtype, device=layer.weight.device)
        layer.register_parameter(name, nn.Parameter(empty))
    layer.scaling, layer.lora_dropout = alpha / r, dropout
    return layer
