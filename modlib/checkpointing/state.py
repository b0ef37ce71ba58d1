"""What is in a checkpoint: the model's and the optimizer's tensors by name, and everything else as JSON.

Keys are names of the bare model: prefixes that torch.compile, activation checkpointing and DistributedDataParallel add
are dropped, so a run may change any of them between saving and loading. A tied parameter is stored once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from modlib.checkpointing.manifest import Manifest
from modlib.checkpointing.plain import decode, encode
from modlib.optim.schedules import Scheduler
from modlib.runtime.errors import CheckpointError

WRAPPER_NAMES = ("_orig_mod.", "_checkpoint_wrapped_module.")
IMPLEMENTATION_CHOICES = frozenset({"foreach", "fused", "capturable", "differentiable"})
"""Optimizer settings that say how to compute, not what; a resumed run keeps its own."""


@dataclass
class TrainingState:
    """The state of one process, ready to be written, or the places to read into.

    Args:
        tensors: Key -> plain tensor or DTensor; for saving the live ones, never changed here.
        aliases: Key of a tied parameter -> the key it is stored under.
        finite: Keys whose values must all be finite to be saved: parameters and optimizer state, not buffers (an
            attention mask may hold -inf).
        optimizer, scheduler: JSON state, None where there is none.
    """

    tensors: dict[str, Tensor]
    aliases: dict[str, str] = field(default_factory=dict)
    finite: frozenset[str] = frozenset()
    optimizer: dict[str, Any] | None = None
    scheduler: dict[str, Any] | None = None


def capture(model: nn.Module, optimizer: Optimizer | None, scheduler: Scheduler | None) -> TrainingState:
    """Name everything there is to save; no tensor is copied.

    Raises:
        CheckpointError: Something has no representation in a checkpoint; its name is given.
    """
    tensors, aliases = _model_tensors(model)
    finite = {key for key, tensor in tensors.items() if isinstance(tensor, nn.Parameter)}
    state = TrainingState(tensors, aliases)
    if optimizer is not None:
        state.optimizer, optimizer_tensors = _optimizer_state(optimizer, _parameter_names(tensors))
        finite.update(optimizer_tensors)
        tensors.update(optimizer_tensors)
    if scheduler is not None:
        state.scheduler = {
            "class": type(scheduler).__qualname__,
            "state": encode(scheduler.state_dict(), "scheduler"),
        }
    state.finite = frozenset(finite)
    return state


@dataclass
class StagedState:
    """Places to read a checkpoint into that nothing uses yet, and what puts them to use once all bytes are verified."""

    tensors: dict[str, Tensor]
    commit: Callable[[], None]


def stage(
    manifest: Manifest,
    model: nn.Module,
    optimizer: Optimizer | None,
    scheduler: Scheduler | None,
    *,
    only_moments: bool = False,
) -> StagedState:
    """Fresh tensors for everything in the checkpoint; the model and the optimizer change only in `commit`.

    Call `differences` first: the checkpoint must fit. The model's parameters are copied into in place (FSDP2, compiled
    graphs and tied names keep their tensors); the optimizer's state is replaced by the fresh tensors. With
    only_moments, neither the model nor the optimizer's settings change.
    """
    live, _ = _model_tensors(model)
    staged: dict[str, Tensor] = {}
    if not only_moments:
        staged = {key: torch.empty_like(tensor, requires_grad=False) for key, tensor in live.items()}
    copied = list(staged)
    new_state: dict[Tensor, dict[str, Any]] = {}
    if optimizer is not None:
        assert manifest.optimizer is not None
        parameters = {name: parameter for parameter, name in _parameter_names(live).items()}
        groups = {parameter: group for group in optimizer.param_groups for parameter in group["params"]}
        for name, saved in manifest.optimizer["state"].items():
            parameter = parameters[name]
            new_state[parameter] = {entry: decode(value) for entry, value in saved["values"].items()}
            for entry in saved["tensors"]:
                key = f"optimizer.{name}.{entry}"
                stored = manifest.tensors[key]
                fresh = _fresh_optimizer_tensor(
                    entry, parameter, groups[parameter], stored.shape, getattr(torch, stored.dtype)
                )
                staged[key] = new_state[parameter][entry] = fresh

    @torch.no_grad()
    def commit() -> None:
        for key in copied:
            _local(live[key]).copy_(_local(staged[key]))
        if optimizer is not None and manifest.optimizer is not None:
            optimizer.state.clear()
            optimizer.state.update(new_state)
            if not only_moments:
                for group, saved_group in zip(optimizer.param_groups, manifest.optimizer["groups"], strict=True):
                    _set_hyperparameters(group, decode(saved_group["values"]))
        if scheduler is not None and manifest.scheduler is not None:
            scheduler.load_state_dict(decode(manifest.scheduler["state"]))

    return StagedState(staged, commit)


def dtype_name(dtype: torch.dtype) -> str:
    """torch's name of an element type without the `torch.`."""
    return str(dtype).removeprefix("torch.")


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor.detach()


def _model_tensors(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Every distinct tensor of the model by key, and the keys of those that are tied to an earlier one.

    Frozen parameters are left out where the model says so, by its attribute `adapter_only_checkpoints`: they come from
    elsewhere. Its buffers may change while it trains, so they stay.
    """
    if isinstance(model, DistributedDataParallel):
        model = model.module
    adapter_only = getattr(model, "adapter_only_checkpoints", False)
    tensors: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    seen: dict[int, str] = {}
    for name, value in model.state_dict(keep_vars=True).items():
        for wrapper in WRAPPER_NAMES:
            name = name.replace(wrapper, "")
        key = f"model.{name}"
        if not isinstance(value, Tensor):
            raise CheckpointError(f"{key} ({type(value).__qualname__}) must be a tensor; make it a buffer")
        if adapter_only and isinstance(value, nn.Parameter) and not value.requires_grad:
            continue
        if id(value) in seen:
            aliases[key] = seen[id(value)]
        else:
            seen[id(value)] = key
            tensors[key] = value
    return tensors, aliases


def _parameter_names(tensors: dict[str, Tensor]) -> dict[Tensor, str]:
    return {
        tensor: key.removeprefix("model.")
        for key, tensor in tensors.items()
        if key.startswith("model.") and isinstance(tensor, nn.Parameter)
    }


def _optimizer_state(optimizer: Optimizer, names: dict[Tensor, str]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The optimizer's state as JSON, and its tensors by key."""
    tensors: dict[str, Tensor] = {}
    states: dict[str, Any] = {}
    groups: list[dict[str, Any]] = []
    for index, group in enumerate(optimizer.param_groups):
        unknown = [tuple(parameter.shape) for parameter in group["params"] if parameter not in names]
        if unknown:
            raise CheckpointError(
                f"optimizer group {index} holds {len(unknown)} parameters (first shape {unknown[0]}) that are not in "
                "the model; build the optimizer from this model's parameters, after sharding it"
            )
        values = {
            name: encode(value, f"optimizer group {index}.{name}") for name, value in group.items() if name != "params"
        }
        groups.append({"params": [names[parameter] for parameter in group["params"]], "values": values})
        for parameter in group["params"]:
            entries = optimizer.state.get(parameter)
            if entries:
                states[names[parameter]] = {
                    "tensors": [entry for entry, value in entries.items() if isinstance(value, Tensor)],
                    "values": {
                        entry: encode(value, f"optimizer.{names[parameter]}.{entry}")
                        for entry, value in entries.items()
                        if not isinstance(value, Tensor)
                    },
                }
                tensors.update(_entry_tensors(names[parameter], parameter, entries))
    return {"class": type(optimizer).__qualname__, "groups": groups, "state": states}, tensors


def _entry_tensors(name: str, parameter: Tensor, entries: dict[str, Any]) -> Iterator[tuple[str, Tensor]]:
    for entry, value in entries.items():
        if isinstance(value, Tensor):
            if isinstance(parameter, DTensor) and value.ndim > 0 and not isinstance(value, DTensor):
                raise CheckpointError(
                    f"optimizer.{name}.{entry} (a plain tensor of shape {tuple(value.shape)}) must be a DTensor like "
                    "its sharded parameter; an optimizer that keeps per-rank tensors cannot be saved"
                )
            yield f"optimizer.{name}.{entry}", value


def _fresh_optimizer_tensor(
    entry: str, parameter: Tensor, group: dict[str, Any], shape: tuple[int, ...], dtype: torch.dtype
) -> Tensor:
    """An empty tensor where this optimizer itself would have made its state: same device, same sharding."""
    if not shape and (entry == "step" or parameter.ndim > 0):
        on_device = group.get("capturable") or group.get("fused")
        return torch.empty((), dtype=dtype, device=parameter.device if on_device else "cpu")
    if shape == tuple(parameter.shape):
        return torch.empty_like(parameter, dtype=dtype, requires_grad=False)
    return parameter.detach().new_zeros(shape, dtype=dtype)


def _set_hyperparameters(group: dict[str, Any], values: dict[str, Any]) -> None:
    for name, value in values.items():
        if name in IMPLEMENTATION_CHOICES:
            continue
        current = group[name]
        if isinstance(current, Tensor):
            current.fill_(value)  # a captured graph keeps reading this tensor
        else:
            group[name] = value
