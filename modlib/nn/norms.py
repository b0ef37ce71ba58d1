"""Normalisation layers: torch's own LayerNorm and RMSNorm, built by one rule.

Both take the shape (..., size) in any floating type, compute in at least float32, and return the type they were given:

    LayerNorm  (x - mean(x)) / sqrt(var(x) + eps) * weight + bias, eps 1e-5 by default; var divides by size
    RMSNorm    x / sqrt(mean(x^2) + eps) * weight, eps by default the machine epsilon of the type it computes in
               (1.2e-7 for float32 and bfloat16)

Gin sets eps with `LayerNorm.eps = 1e-6` or `RMSNorm.eps = 1e-6`.

Source: Ba et al. 2016, Layer Normalization; Zhang and Sennrich 2019, Root Mean Square Layer Normalization.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable

from torch import nn


def build_norm(norm: Callable[..., nn.Module], size: int, *, bias: bool) -> nn.Module:
    """Build a norm over the last `size` values; with `bias=False` leave its bias out where it has one.

    Args:
        norm: A class or function that takes the size first, such as torch.nn.LayerNorm or torch.nn.RMSNorm.
        size: Length of the last axis.
        bias: False passes `bias=False` on to norms that know the argument; True leaves the norm's own default.
    """
    if not bias and "bias" in inspect.signature(norm).parameters:
        return norm(size, bias=False)
    return norm(size)
