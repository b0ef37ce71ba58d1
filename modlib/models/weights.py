"""Where a model's weights come from, said while it is still on the meta device and done once it has memory.

A model is built on meta, sharded, and only then given memory; so whoever knows where some of its weights come from
(a checkpoint, a pretrained model, the rule of an adapter) leaves that with the model as a source. A model that
already has memory is filled at once.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from modlib.models.initialization import class_name, plain_name
from modlib.runtime.errors import ConfigError

Fill = Callable[[nn.Module, int], None]


@dataclass(frozen=True)
class WeightSource:
    """One origin of weights.

    Args:
        names: Full names of the parameters it sets, in the model it was given to.
        fill: Called with (model, seed) to set them in place; the model may be sharded by FSDP2.
    """

    names: frozenset[str]
    fill: Fill


def add_weights(model: nn.Module, fill: Fill, names: Collection[str] | None = None, seed: int = 0) -> None:
    """Let `fill` set weights of the model: when it gets its memory, or now if it has it.

    Sources fill in the order in which they were added, so a later one may overwrite what an earlier one set.

    Args:
        model: On meta, or in memory.
        fill: See WeightSource.
        names: What it sets; None means every parameter the model has now.
        seed: Passed on when filling happens now.
    """
    claimed = frozenset(parameter_names(model) if names is None else names)
    if any(parameter.device.type == "meta" for parameter in model.parameters()):
        model.weight_sources = [*weight_sources(model), WeightSource(claimed, fill)]  # type: ignore[assignment]
    else:
        fill(model, seed)


def weight_sources(model: nn.Module) -> list[WeightSource]:
    """The sources that were left with the model, in the order they fill."""
    return list(getattr(model, "weight_sources", ()))


def parameter_names(model: nn.Module) -> list[str]:
    """Names of all parameters without what wrappers add, a shared one once."""
    return [plain_name(name) for name, _ in model.named_parameters()]


def named_state(model: nn.Module) -> dict[str, Tensor]:
    """Every tensor of the model's state dict by its plain name; the tensors themselves, not copies."""
    return {plain_name(name): value for name, value in model.state_dict(keep_vars=True).items()}


def initialize(model: nn.Module, initialization: Callable[..., Any] | None, seed: int) -> None:
    """Give every parameter its initial value: from the model's own sources, the rest from `initialization`.

    Args:
        model: In memory, sharded or not.
        initialization: A callable (model, seed); with `skip`, a set of names to leave alone, where there are sources.
            None when the sources set everything.
        seed: The run's.

    Raises:
        ConfigError: Nothing sets some parameter.
    """
    sources = weight_sources(model)
    claimed, unclaimed = _claimed(model, initialization)
    if unclaimed and initialization is not None:
        if claimed:
            initialization(model, seed, skip=claimed)
        else:
            initialization(model, seed)
    for source in sources:
        source.fill(model, seed)
    if sources:
        model.weight_sources = []  # type: ignore[assignment]


def check_initialization(model: nn.Module, initialization: Any) -> None:
    """Refuse what `initialize` would refuse, with the model still on meta.

    Args:
        model: As `initialize` will see it.
        initialization: A callable as there; asked by its method `check` (model, skip) where it has one.

    Raises:
        ConfigError: Nothing sets some parameter, or the initialization has no rule for it.
    """
    claimed, unclaimed = _claimed(model, initialization)
    if unclaimed and hasattr(initialization, "check"):
        initialization.check(model, skip=claimed)


def _claimed(model: nn.Module, initialization: Any) -> tuple[frozenset[str], list[str]]:
    """The names of parameters that the model's own sources set, and of the others."""
    claimed: frozenset[str] = frozenset().union(*(source.names for source in weight_sources(model)))
    unclaimed = [name for name in parameter_names(model) if name not in claimed]
    if unclaimed and initialization is None:
        raise ConfigError(
            f"initialization (None) must be given for {len(unclaimed)} parameters of {class_name(model)} "
            f"({', '.join(unclaimed[:3])}{', ...' if len(unclaimed) > 3 else ''}) that nothing else sets; "
            "set train.initialization = @ComposedInitializer"
        )
    return claimed, unclaimed
