"""Gradient norm and clipping, over plain and sharded parameters alike."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from modlib.components import component
from modlib.runtime.errors import ConfigError


def gradient_norm(parameters: Iterable[nn.Parameter], norm_type: float = 2.0) -> Tensor:
    """Total norm of all gradients over all ranks, as a scalar tensor on the device (no host sync)."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = get_total_norm(gradients, norm_type=norm_type)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


@component("gradient_clipper", "fsdp", runtime_args=("model",))
class GradientClipper:
    """Scale gradients down to a largest total norm, global over all ranks.

    Args:
        model: The model whose gradients are clipped.
        max_norm: Largest total norm after clipping; above 0. None measures the norm and leaves gradients as they are.
        norm_type: Order of the norm: 1, 2 or inf.

    Source: Pascanu et al. 2013, "On the difficulty of training recurrent neural networks", algorithm 1.
    """

    def __init__(self, model: nn.Module, *, max_norm: float | None = 1.0, norm_type: float = 2.0) -> None:
        if max_norm is not None and not max_norm > 0:
            raise ConfigError(f"max_norm ({max_norm}) must be above 0; use None to measure the norm without clipping")
        if norm_type not in (1, 2, float("inf")):
            raise ConfigError(f"norm_type ({norm_type}) must be 1, 2 or inf; set it to 2.0")
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.max_norm = max_norm
        self.norm_type = norm_type

    def norm(self) -> Tensor:
        """The total norm before clipping."""
        return gradient_norm(self.parameters, self.norm_type)

    @torch.no_grad()
    def clip(self, norm: Tensor) -> None:
        """Scale all gradients so that a total of `norm` becomes at most max_norm."""
        if self.max_norm is not None:
            clip_grads_with_norm_(self.parameters, self.max_norm, norm)
