"""May these modules be sharded one by one? Asked on one process, where a wrong answer would not show.

A unit's weights are whole only while its own forward runs, and sharding gives each unit tensors of its own. So a weight
that two units share comes apart, and one that is read from outside is a shard there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

from torch import nn

from modlib.distributed.fsdp import Sharding, sharding_units
from modlib.runtime.errors import ConfigError
from modlib.runtime.weight_reads import WeightReads


def require_whole_weights(model: nn.Module, forward: Callable[[], object] | None = None) -> None:
    """Refuse sharding units that share a weight with another part of the model, or whose weight another part reads.

    Args:
        model: Not sharded yet; on the meta device, or in memory.
        forward: One forward of the model, to see who reads what, where a user named its units. Where it raises, as
            some models do on the meta device, what was read until then counts.

    Raises:
        ConfigError: Names the class and the parameter.
    """
    sharding = getattr(model, "sharding", None) or Sharding()
    units = sharding_units(model, sharding)
    owners = {
        id(unit): (start // sharding.layers_per_unit, unit) for start, unit in enumerate(units)
    }  # module -> the group it is gathered with
    held = _held(model, owners)
    problems = list(_shared(held))
    if not problems and forward is not None and sharding.units is not None:
        problems = list(_read_outside(held, units, forward))
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)))


Held = list[tuple[str, nn.Parameter, int, nn.Module | None]]
"""Name, parameter, number of the group that it is gathered with (-1: the rest of the model), and the unit."""


def _held(model: nn.Module, owners: dict[int, tuple[int, nn.Module]]) -> Held:
    found: Held = []
    seen: set[int] = set()

    def visit(module: nn.Module, name: str, group: int, unit: nn.Module | None) -> None:
        if id(module) in seen:
            return
        seen.add(id(module))
        group, unit = owners.get(id(module), (group, unit))
        found.extend(
            (f"{name}{leaf}", parameter, group, unit) for leaf, parameter in module.named_parameters(recurse=False)
        )
        for leaf, child in module.named_children():
            visit(child, f"{name}{leaf}.", group, unit)

    visit(model, "", -1, None)
    return found


def _shared(held: Held) -> Iterator[str]:
    first: dict[int, tuple[str, int, nn.Module | None]] = {}
    for name, parameter, group, unit in held:
        other, other_group, other_unit = first.setdefault(id(parameter), (name, group, unit))
        if group != other_group:
            kind = type(unit if unit is not None else other_unit).__name__
            yield (
                f"units ({kind}) must have weights of their own, but {name} is {other}, and sharding would make two of "
                f"it; leave {kind} out of units"
            )


def _read_outside(held: Held, units: Sequence[nn.Module], forward: Callable[[], object]) -> Iterator[str]:
    unit_of = {id(parameter): (name, unit) for name, parameter, _, unit in held if unit is not None}
    running: list[int] = []
    outside: dict[str, str] = {}

    def tell(parameter: nn.Parameter) -> None:
        name, unit = unit_of.get(id(parameter), ("", None))
        if unit is not None and id(unit) not in running:
            outside[name] = type(unit).__name__

    with _entered(units, running), suppress(Exception), WeightReads(tell):
        forward()
    for name, kind in outside.items():
        yield (
            f"units ({kind}) must have weights that they alone read, but {name} is read outside the forward of its "
            f"{kind}, where it is a shard; leave {kind} out of units"
        )


@contextmanager
def _entered(units: Sequence[nn.Module], running: list[int]) -> Iterator[None]:
    """Keep in `running` which units are in their forward."""
    hooks = []
    for unit in units:
        hooks.append(unit.register_forward_pre_hook(lambda module, _: running.append(id(module))))
        hooks.append(unit.register_forward_hook(lambda module, *_: running.remove(id(module)), always_call=True))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
