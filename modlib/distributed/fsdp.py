"""FSDP2: which modules are sharded together, and in which precision they compute."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

COMPUTE_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def shard(model: nn.Module, units: Sequence[nn.Module], mesh: DeviceMesh, precision: str) -> None:
    """Shard a model in place with FSDP2, one group of parameters per unit and one for the rest.

    Args:
        model: A model on the meta device or in memory.
        units: Modules gathered and freed together, inner ones first.
        mesh: One-dimensional mesh of all data-parallel ranks.
        precision: "float32", or "bfloat16" to gather and compute in bfloat16 over float32 shards; gradients are
            reduced in float32 either way.
    """
    policy = MixedPrecisionPolicy(param_dtype=COMPUTE_DTYPES[precision], reduce_dtype=torch.float32)
    if precision == "float32":
        policy = MixedPrecisionPolicy()
    for unit in units:
        fully_shard(unit, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)


def set_gradient_sync(model: nn.Module, synchronise: bool) -> None:
    """Reduce gradients over ranks in the next backward, or only accumulate them locally."""
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(synchronise)
