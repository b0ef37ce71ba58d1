"""Normalisation layers: torch's own LayerNorm and RMSNorm, built by one rule."""

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
