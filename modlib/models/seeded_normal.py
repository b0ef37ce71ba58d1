"""Random values that are a function of (seed, name, position), whatever part of a parameter a rank holds."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import torch
from torch import Tensor

# Values drawn from one generator. A rank draws only the chunks that its shard touches; fixed, as it shapes the values.
CHUNK = 1 << 18


Draw = Callable[[Tensor, torch.Generator], Tensor]
"""Fills an empty float32 tensor from the generator."""


def _chunk(seed: int, name: str, index: int, numel: int, draw: Draw) -> Tensor:
    """The drawn values index * CHUNK ... of a parameter with numel values, float32."""
    digest = hashlib.blake2b(f"{seed}\0{name}\0{index}".encode(), digest_size=8).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)  # manual_seed takes int64
    length = min(CHUNK, numel - index * CHUNK)
    return draw(torch.empty(length, dtype=torch.float32, device="cpu"), generator)


def _fill_flat(flat: Tensor, start: int, *, seed: int, name: str, numel: int, draw: Draw) -> None:
    """Write values start .. start + len(flat) of the parameter into flat."""
    stop = start + flat.numel()

    def fill(index: int) -> None:
        begin, end = max(start, index * CHUNK), min(stop, (index + 1) * CHUNK)
        values = _chunk(seed, name, index, numel, draw)
        flat[begin - start : end - start].copy_(values[begin - index * CHUNK : end - index * CHUNK])

    indices = range(start // CHUNK, -(-stop // CHUNK))
    with ThreadPoolExecutor(min(len(indices), torch.get_num_threads())) as threads:
        list(threads.map(torch.no_grad()(fill), indices))  # grad mode is per thread


def fill_normal(parameter: Tensor, *, seed: int, name: str, mean: float, std: float) -> None:
    """Fill a parameter, or this rank's shard of it, with normal values.

    The values are drawn on the CPU in float32 and rounded to the parameter's dtype, so device, dtype and sharding do
    not change them. Memory beyond the parameter is one chunk, or the rows of the shard when it is cut along another
    axis than the first.

    Args:
        parameter: Plain tensor or DTensor of any placement without partial sums.
        seed: Any integer.
        name: What tells this parameter from the others; the full name in the model.
        mean: Of the distribution.
        std: Of the distribution.
    """

    def normal(empty: Tensor, generator: torch.Generator) -> Tensor:
        return empty.normal_(generator=generator).mul_(std).add_(mean)

    _fill(parameter, seed=seed, name=name, draw=normal)


def fill_uniform(parameter: Tensor, *, seed: int, name: str, low: float, high: float) -> None:
    """Fill a parameter, or this rank's shard of it, with values uniform in [low, high); otherwise as fill_normal."""

    def uniform(empty: Tensor, generator: torch.Generator) -> Tensor:
        return empty.uniform_(generator=generator).mul_(high - low).add_(low)

    _fill(parameter, seed=seed, name=name, draw=uniform)


def _fill(parameter: Tensor, *, seed: int, name: str, draw: Draw) -> None:
    """Write what `draw` gives for a whole parameter into the part of it that this rank holds."""
    shape = tuple(parameter.shape)
    local, local_shape, offset = parameter, shape, (0,) * len(shape)
    if hasattr(parameter, "device_mesh"):  # a DTensor; the import costs a second that plain models need not pay
        from torch.distributed.tensor import DTensor
        from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

        assert isinstance(parameter, DTensor)
        local = parameter.to_local()
        local_shape, offset = compute_local_shape_and_global_offset(
            parameter.shape, parameter.device_mesh, parameter.placements
        )
    if local.numel() == 0:
        return
    assert tuple(local.shape) == tuple(local_shape), f"{name}: local {tuple(local.shape)}, expected {local_shape}"
    row = math.prod(shape[1:])
    write = partial(_fill_flat, seed=seed, name=name, numel=math.prod(shape), draw=draw)
    if tuple(local_shape[1:]) == shape[1:] and local.is_contiguous():
        write(local.view(-1), offset[0] * row if shape else 0)
        return
    rows = torch.empty(local_shape[0], *shape[1:], dtype=torch.float32, device="cpu")
    write(rows.view(-1), offset[0] * row)
    for dim in range(1, len(shape)):
        rows = rows.narrow(dim, offset[dim], local_shape[dim])
    local.copy_(rows)
