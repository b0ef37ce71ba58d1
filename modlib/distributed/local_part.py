"""Whole tensors and the part of them that one rank holds."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Slices = tuple[slice, ...]


def local_part(tensor: Tensor) -> tuple[Tensor, Slices]:
    """This rank's memory of a tensor, and where it lies in the whole; for a plain tensor all of it."""
    shape, offset, local = tuple(tensor.shape), (0,) * tensor.ndim, tensor
    if hasattr(tensor, "device_mesh"):  # a DTensor; the import costs a second that plain models need not pay
        from torch.distributed.tensor import DTensor
        from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

        assert isinstance(tensor, DTensor)
        local = tensor.to_local()
        shape, offset = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
    return local.detach(), tuple(slice(start, start + size) for start, size in zip(offset, shape, strict=True))


@torch.no_grad()
def copy_part(target: Tensor, read: Callable[[Slices], Tensor]) -> None:
    """Copy into a tensor, or into this rank's shard of it, what `read` gives for these slices of the whole."""
    local, slices = local_part(target)
    if local.numel():
        local.copy_(read(slices))
