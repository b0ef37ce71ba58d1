"""Gradient norm and clipping, over plain and sharded parameters alike."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Partial
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from modlib.components import component
from modlib.runtime.errors import ConfigError


def gradient_norm(parameters: Iterable[nn.Parameter], norm_type: float = 2.0) -> Tensor:
    """Total norm of all gradients over all ranks, as a scalar tensor on the device (no host sync).

    NaN or non_finite when any gradient of any rank is.
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if norm_type == math.inf:
        return _largest(gradients)
    norm = get_total_norm(gradients, norm_type=norm_type)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def _largest(gradients: Sequence[Tensor]) -> Tensor:
    """The largest absolute value over all ranks, NaN where there is one.

    torch's own refuses a rank without a part of some gradient, and its maximum over ranks may drop a NaN; a sum
    does not.
    """
    local = [gradient.to_local() if isinstance(gradient, DTensor) else gradient for gradient in gradients]
    largest = get_total_norm([part for part in local if part.numel()], norm_type=math.inf)
    sharded = next((gradient for gradient in gradients if isinstance(gradient, DTensor)), None)
    if sharded is None:
        return largest
    mesh = sharded.device_mesh
    largest = largest.to(sharded.to_local().device)

    def reduced(value: Tensor, operation: str) -> Tensor:
        return DTensor.from_local(value, mesh, [Partial(operation)] * mesh.ndim, run_check=False).full_tensor()

    return reduced(largest, "max") + reduced(largest * 0.0, "sum")


@component("gradient_clipper", "fsdp", runtime_args=("model",), non_finite=("norm_type",))
class GradientClipper:
    """Scale gradients down to a largest total norm, global over all ranks.

    Args:
        model: The model whose gradients are clipped.
        max_norm: Largest total norm after clipping; above 0. None measures the norm and leaves gradients as they are.
        norm_type: Order of the norm: 1, 2 or "inf".

    Raises:
        ConfigError: A value outside its range.

    Source: Pascanu et al. 2013, "On the difficulty of training recurrent neural networks", algorithm 1.
    """

    def __init__(
        self, model: nn.Module, *, max_norm: float | None = 1.0, norm_type: float | Literal["inf"] = 2.0
    ) -> None:
        problems = []
        if max_norm is not None and not 0 < max_norm < math.inf:
            problems.append(
                f"max_norm ({max_norm}) must be above 0 and finite; use None to measure the norm without clipping"
            )
        if norm_type not in (1, 2, math.inf, "inf"):
            problems.append(f"norm_type ({norm_type!r}) must be 1, 2 or 'inf'; set it to 2.0")
        if problems:
            raise ConfigError(problems)
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.max_norm = max_norm
        self.norm_type = float(norm_type)

    def norm(self) -> Tensor:
        """The total norm before clipping."""
        return gradient_norm(self.parameters, self.norm_type)

    @torch.no_grad()
    def clip(self, norm: Tensor) -> None:
        """Scale all gradients so that a total of `norm` becomes at most max_norm."""
        if self.max_norm is not None:
            clip_grads_with_norm_(self.parameters, self.max_norm, norm)


@component("gradient_clipper", "fsdp_logging_only", runtime_args=("model",), non_finite=("norm_type",))
class LoggingOnlyClipper(GradientClipper):
    """Measure the total norm of gradients, global over all ranks, and never clip.

    Args:
        model: The model whose gradients are measured.
        norm_type: Order of the norm: 1, 2 or "inf".

    Raises:
        ConfigError: Another norm_type.
    """

    def __init__(self, model: nn.Module, *, norm_type: float | Literal["inf"] = 2.0) -> None:
        super().__init__(model, max_norm=None, norm_type=norm_type)


@component("gradient_clipper", "dummy", runtime_args=("model",))
class DummyClipper(GradientClipper):
    """Never clip, nothing to set.

    The 2-norm is measured all the same: it is what tells that a gradient is NaN or non_finite, on any rank, before it
    reaches the parameters, and no cheaper test would.

    Args:
        model: The model whose gradients are left as they are.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model, max_norm=None)
