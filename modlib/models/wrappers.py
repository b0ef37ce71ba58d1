"""A model with something said about it: where its weights come from, how it is sharded.

Each of these builds the inner model, leaves a note with it, and returns that same module: no name changes, and they
nest in any order. The innermost is said first; of two that set the same weights, the outer one has the last word.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from torch import nn

from modlib.components import component
from modlib.distributed.fsdp import HasShardingUnits, Sharding, sharding_units
from modlib.models.weights import add_weights, named_state, parameter_names
from modlib.runtime.errors import ConfigError


@component("model", "model_initialized")
def InitializedModel(model: Callable[[], Any], initialization: Callable[[], Any], seed: int | None = None) -> nn.Module:
    """A model whose parameters are initialised by a rule of its own.

    Takes the place of train.initialization for this model; what an outer wrapper adds later (an adapter, a checkpoint)
    is left alone.

    Args:
        model: Returns the model.
        initialization: Returns a callable (model, seed) that writes the weights in place, such as ComposedInitializer.
        seed: Of these weights, at least 0; None takes the run's.

    Raises:
        ConfigError: A negative seed.
    """
    if seed is not None and seed < 0:
        raise ConfigError(f"seed ({seed}) must be at least 0; leave it out to take the run's")
    built, rule = model(), initialization()
    names = frozenset(parameter_names(built))

    def fill(whole: nn.Module, run_seed: int) -> None:
        chosen = run_seed if seed is None else seed
        others = frozenset(parameter_names(whole)) - names
        if others:
            rule(whole, chosen, skip=others)
        else:
            rule(whole, chosen)

    add_weights(built, fill)
    return built


@component("model", "checkpointed", not_science=("base_folder",))
def CheckpointedModel(
    model: Callable[[], Any],
    checkpoint_path: str,
    checkpoint_loading: Callable[[], Any],
    base_folder: str | None = None,
) -> nn.Module:
    """A model that starts from the weights of a checkpoint: a warm start, with a fresh optimizer and step 0.

    Exactly the parameters and persistent buffers that the inner model has are read, and each must be in the file; an
    adapter that an outer wrapper adds is not expected there. Of an inner LoRAModel only what its own checkpoints hold
    is read (see adapter_only_checkpoints): fine-tuning goes on from another run's adapters.

    Args:
        model: Returns the model.
        checkpoint_path: A checkpoint's folder or file; relative to the working directory. Read when the model has
            memory, but looked for at once.
        checkpoint_loading: Returns an object with `load_model(path, model, names)`: FSDPCheckpointLoading for
            checkpoints of this library, TorchCheckpointLoading for single files.
        base_folder: A folder of transformers that the weights once came from, as `modlib import` writes it: what it
            says beside them (tokenizer, settings, dtype) is kept by `modlib export`.

    Raises:
        ConfigError: There is nothing at checkpoint_path, or no config.json in base_folder.
        CheckpointError: (When it is read) it does not fit the model or is damaged.
    """
    path = Path(checkpoint_path).expanduser()
    if not path.exists():
        raise ConfigError(f"checkpoint_path ('{checkpoint_path}') must exist; there is no {path.absolute()}")
    base = None if base_folder is None else Path(base_folder).expanduser()
    if base is not None and not (base / "config.json").is_file():
        raise ConfigError(
            f"base_folder ('{base_folder}') must be a folder with a config.json of transformers; leave it out if the "
            "weights came from none"
        )
    built, loading = model(), checkpoint_loading()
    if base is not None:
        built.base_folder = base
    adapter_only = getattr(built, "adapter_only_checkpoints", False)
    names = frozenset(
        name
        for name, tensor in named_state(built).items()
        if not (adapter_only and isinstance(tensor, nn.Parameter) and not tensor.requires_grad)
    )

    def fill(whole: nn.Module, _: int) -> None:
        loading.load_model(path, whole, names)

    add_weights(built, fill, names)
    return built


@component("model", "fsdp_wrapped")
def FSDPModel(
    model: Callable[[], Any],
    units: Sequence[str] | None = None,
    reshard_after_forward: bool = True,
    layers_per_unit: int = 1,
    precision: Literal["float32", "bfloat16"] | None = None,
) -> nn.Module:
    """A model that says how it wants to be sharded over ranks; on one rank it changes nothing.

    Args:
        model: Returns the model.
        units: Class names of the modules gathered and freed together; None takes the model's own blocks.
        reshard_after_forward: Free gathered parameters after forward and gather them again for backward: less memory,
            more communication.
        layers_per_unit: Consecutive units gathered together, at least 1.
        precision: What this model computes in when it is sharded; None takes the run's.

    Raises:
        ConfigError: A class that is not in the model, units that hold one another, or a value out of range.

    Source: Zhao et al. 2023, PyTorch FSDP, section 3.2 (units, resharding).
    """
    built = model()
    sharding = Sharding(
        units=None if units is None else tuple(units),
        reshard_after_forward=reshard_after_forward,
        layers_per_unit=layers_per_unit,
        precision=precision,
    )
    problems = []
    if layers_per_unit < 1:
        problems.append(f"layers_per_unit ({layers_per_unit}) must be at least 1; 1 gathers one block at a time")
    if precision not in (None, "float32", "bfloat16"):
        problems.append(f"precision ({precision!r}) must be 'float32' or 'bfloat16'; leave it out to take the run's")
    if units is not None and not tuple(units):
        problems.append("units ([]) must name at least one class; leave it out to take the model's own blocks")
    if units is None and not isinstance(built, HasShardingUnits):
        problems.append(f"units (None) must be given: {type(built).__name__} does not say what its blocks are")
    if problems:
        raise ConfigError(problems)
    _refuse_nested(built, sharding_units(built, sharding))
    built.sharding = sharding
    return built


def _refuse_nested(model: nn.Module, units: Sequence[nn.Module]) -> None:
    """An inner unit would be gathered with the outer one and again by itself."""
    chosen = {id(unit) for unit in units}
    for unit in units:
        inner = next((part for part in unit.modules() if part is not unit and id(part) in chosen), None)
        if inner is not None:
            raise ConfigError(
                f"units ({type(unit).__name__}, {type(inner).__name__}) of {type(model).__name__} must not hold one "
                "another; name one of the two"
            )
