"""FSDP2: which modules are sharded together, and in which precision they compute."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from modlib.runtime.errors import ConfigError

COMPUTE_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Sharding:
    """How a model wants to be sharded, where it says so itself (as its attribute `sharding`).

    Args:
        units: Class names of the modules gathered and freed together; None takes the model's `fsdp_units()`.
        reshard_after_forward: Free gathered parameters after forward and gather them again for backward; less memory,
            more communication.
        layers_per_unit: So many consecutive units are gathered together.
        precision: "float32" or "bfloat16" for this model; None takes the run's.
    """

    units: tuple[str, ...] | None = None
    reshard_after_forward: bool = True
    layers_per_unit: int = 1
    precision: str | None = None


@runtime_checkable
class HasShardingUnits(Protocol):
    """Says which of its modules are sharded one by one, inner ones first; else it is sharded as a whole."""

    def fsdp_units(self) -> Sequence[nn.Module]: ...


def shard(model: nn.Module, mesh: DeviceMesh, precision: str) -> None:
    """Shard a model in place with FSDP2, one group of parameters per unit and one for the rest.

    Args:
        model: A model on the meta device or in memory. Its `sharding`, where it has one, says how.
        mesh: One-dimensional mesh of all data-parallel ranks.
        precision: "float32", or "bfloat16" to gather and compute in bfloat16 over float32 shards; gradients are
            reduced in float32 either way.

    Raises:
        ConfigError: A class named in `sharding.units` is not in the model.
    """
    sharding = getattr(model, "sharding", None) or Sharding()
    precision = sharding.precision or precision
    policy = MixedPrecisionPolicy(param_dtype=COMPUTE_DTYPES[precision], reduce_dtype=torch.float32)
    if precision == "float32":
        policy = MixedPrecisionPolicy()
    units = sharding_units(model, sharding)
    for start in range(0, len(units), sharding.layers_per_unit):
        unit = units[start : start + sharding.layers_per_unit]
        fully_shard(
            unit if len(unit) > 1 else unit[0],
            mesh=mesh,
            mp_policy=policy,
            reshard_after_forward=sharding.reshard_after_forward,
        )
    fully_shard(model, mesh=mesh, mp_policy=policy)


def sharding_units(model: nn.Module, sharding: Sharding) -> list[nn.Module]:
    """The modules that are sharded one by one before the model itself, inner ones first.

    Raises:
        ConfigError: A class named in `sharding.units` is not in the model.
    """
    if sharding.units is None:
        return list(model.fsdp_units()) if isinstance(model, HasShardingUnits) else []
    present = {type(module).__name__ for module in model.modules()}
    missing = [name for name in sharding.units if name not in present]
    if missing:
        raise ConfigError(
            f"units ({', '.join(missing)}) must be classes of modules in {type(model).__name__}; it has "
            f"{', '.join(sorted(present))}"
        )
    return [module for module in model.modules() if type(module).__name__ in sharding.units]


def set_gradient_sync(model: nn.Module, synchronise: bool) -> None:
    """Reduce gradients over ranks in the next backward, or only accumulate them locally."""
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(synchronise)
