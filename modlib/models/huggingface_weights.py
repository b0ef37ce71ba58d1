"""Weights of a transformers model, pretrained or random, written into parameters that may be sharded."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from modlib.distributed.local_part import Slices, copy_part
from modlib.models.initialization import plain_name
from modlib.runtime.errors import CheckpointError, ConfigError
from modlib.runtime.seeds import derive
from modlib.runtime.weight_index import indexed_files


@dataclass(frozen=True)
class Place:
    """Where a module keeps one tensor.

    Args:
        owner: The module.
        leaf: The tensor's name in it.
        is_buffer: Whether it is a buffer, not a parameter.
    """

    owner: nn.Module
    leaf: str
    is_buffer: bool

    @property
    def _tensors(self) -> dict[str, Any]:
        return self.owner._buffers if self.is_buffer else self.owner._parameters

    @property
    def tensor(self) -> Tensor:
        """The tensor that is there now."""
        return self._tensors[self.leaf]

    def put(self, tensor: Tensor) -> None:
        """Put another tensor there; a parameter stays one."""
        if not self.is_buffer and not isinstance(tensor, nn.Parameter):
            tensor = nn.Parameter(tensor, requires_grad=False)
        self._tensors[self.leaf] = tensor


@dataclass(frozen=True)
class Rule:
    """What transformers' `_init_weights` sets when it is called with one module.

    Args:
        name: Full name of the module.
        model: The transformers model whose rule it is.
        module: What it is called with.
        sets: The tensors that it writes, by their full names; they need not be the module's own.
        tied: Names among them that are tied to another tensor; what is written there does not count.
    """

    name: str
    model: Any
    module: nn.Module
    sets: Mapping[str, Place]
    tied: frozenset[str]


class _Writes(TorchDispatchMode):
    """Collects the storages that are written to."""

    def __init__(self) -> None:
        super().__init__()
        self.storages: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        for position, argument in enumerate(func._schema.arguments):
            value = args[position] if position < len(args) else kwargs.get(argument.name)
            if argument.alias_info is not None and argument.alias_info.is_write and isinstance(value, Tensor):
                self.storages.add(value.untyped_storage()._cdata)
        return func(*args, **kwargs)


def places(network: nn.Module) -> dict[str, Place]:
    """Every parameter and buffer by its full name; a tied one under each of its names."""
    found: dict[str, Place] = {}
    for prefix, module in network.named_modules(remove_duplicate=False):
        for is_buffer, tensors in ((False, module._parameters), (True, module._buffers)):
            for leaf, tensor in tensors.items():
                if tensor is not None:
                    found[f"{prefix}.{leaf}" if prefix else leaf] = Place(module, leaf, is_buffer)
    return found


def initialization_rules(network: Any) -> list[Rule]:
    """Ask the network, on the meta device, which module's rule sets which tensors.

    A tied tensor belongs to the name that the others are tied to.

    Args:
        network: A transformers PreTrainedModel on meta.
    """
    named = places(network)
    tied = {name: named[name].tensor for name in network.all_tied_weights_keys}
    for name, tensor in tied.items():  # by itself for a moment, to tell who writes to which of the two
        named[name].put(torch.empty_like(tensor))
    by_storage = {place.tensor.untyped_storage()._cdata: name for name, place in named.items()}
    rules = []
    for name, module, model in _in_order(network, "", network):
        with torch.no_grad(), torch.device("cpu"), _Writes() as writes:
            model._init_weights(module)
        sets = {by_storage[storage] for storage in writes.storages if storage in by_storage}
        if sets:
            written = {name: named[name] for name in sorted(sets)}
            rules.append(Rule(name, model, module, written, frozenset(sets & set(tied))))
    for name, tensor in tied.items():
        named[name].put(tensor)
    return rules


def _in_order(module: nn.Module, name: str, model: Any) -> Iterator[tuple[str, nn.Module, Any]]:
    """Modules as transformers initialises them, children first, and the innermost transformers model each is in."""
    for child_name, child in module.named_children():
        inner = child if hasattr(child, "_init_weights") else model
        yield from _in_order(child, f"{name}.{child_name}" if name else child_name, inner)
    yield name, module, model


@torch.no_grad()
def fill_random(rules: list[Rule], seed: int) -> None:
    """Set every tensor by the network's own rules: a function of (seed, module name), whatever a rank holds of it.

    Memory beyond the network's is what the largest rule sets, whole and on the CPU.
    """
    for rule in rules:
        _apply_whole(rule, seed, set(rule.sets) - rule.tied)


@torch.no_grad()
def restore_buffers(rules: list[Rule]) -> None:
    """Compute buffers again, which hold garbage after `to_empty`: rotary frequencies, position ids."""
    for rule in rules:
        buffers = [name for name, place in rule.sets.items() if place.is_buffer and name not in rule.tied]
        if buffers:
            _apply_whole(rule, 0, buffers)


def _apply_whole(rule: Rule, seed: int, wanted: Collection[str]) -> None:
    """Let the rule work on whole tensors in place of the live ones, and copy this rank's part of those wanted."""
    live = {name: place.tensor for name, place in rule.sets.items()}
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=[]))
        stack.enter_context(torch.device("cpu"))
        torch.manual_seed(derive(seed, "huggingface", rule.name))
        for name, place in rule.sets.items():
            stack.callback(place._tensors.__setitem__, place.leaf, live[name])
            place.put(torch.zeros(live[name].shape, dtype=live[name].dtype))
        rule.model._init_weights(rule.module)
        whole = {name: rule.sets[name].tensor.detach() for name in wanted}
    for name in wanted:
        copy_part(live[name], whole[name].__getitem__)


def fill_pretrained(model: nn.Module, prefix: str, folder: Path, network_class: Any, config: Any) -> None:
    """Set every parameter and persistent buffer from the weights in a folder.

    Safetensors whose names are the network's are read tensor by tensor, and by each rank only its part. Anything else
    that transformers understands (older names, fused experts, .bin files) is loaded by it on the CPU and copied.

    Args:
        model: What holds the network; sharded or not.
        prefix: The network's name in it, with the dot.
        folder: The weights.
        network_class: Of the network, to load what has other names.
        config: The network's.

    Raises:
        CheckpointError: Something is not in the folder or has another shape, or cannot be read; all names are given.
    """
    state = model.state_dict(keep_vars=True)
    groups: dict[int, list[str]] = {}
    live: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if plain_name(name).startswith(prefix):
            live[plain_name(name).removeprefix(prefix)] = tensor
    for name, tensor in live.items():
        groups.setdefault(id(tensor), []).append(name)
    import pickle

    from safetensors import SafetensorError

    try:
        if not _stream(folder, live, list(groups.values())):
            _load_by_transformers(folder, live, list(groups.values()), network_class, config)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"weights in {folder} must be only tensors and plain values, and hold something that would run code when "
            "loaded; save them as safetensors"
        ) from error
    except (SafetensorError, OSError, ValueError, RuntimeError, KeyError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"weights in {folder} cannot be read: {error}") from error


@contextmanager
def opened(folder: Path) -> Iterator[dict[str, Any]]:
    """The file that holds each tensor, by the tensor's name; empty where the weights are no safetensors."""
    from safetensors import safe_open

    index, single = folder / "model.safetensors.index.json", folder / "model.safetensors"
    if single.is_file():
        paths = [single]
    elif index.is_file():
        paths = indexed_files(index)
    else:
        paths = []
    with ExitStack() as stack:
        files = [stack.enter_context(safe_open(path, framework="pt", device="cpu")) for path in paths]
        yield {name: file for file in files for name in file.keys()}  # noqa: SIM118  not a mapping


def _stream(folder: Path, live: Mapping[str, Tensor], groups: list[list[str]]) -> bool:
    """Read what has the network's own names; False, and nothing is set, when any name or shape differs."""
    with opened(folder) as files:
        sources = [next((name for name in names if name in files), None) for names in groups]
        if None in sources or set(files) - set(live):
            return False
        for name in files:
            if tuple(files[name].get_slice(name).get_shape()) != tuple(live[name].shape):
                return False
        for names in groups:
            stored = [name for name in names if name in files]
            copy_part(live[stored[0]], partial(_read, files[stored[0]], stored[0]))
            for other in stored[1:]:
                if not torch.equal(files[other].get_tensor(other), files[stored[0]].get_tensor(stored[0])):
                    raise CheckpointError(
                        f"{other} and {stored[0]} in {folder} must be equal, as the config ties them; "
                        "set overrides = {'tie_word_embeddings': False}"
                    )
    return True


def _read(file: Any, name: str, slices: Slices) -> Tensor:
    return file.get_slice(name)[slices] if slices else file.get_tensor(name)


def _load_by_transformers(
    folder: Path, live: Mapping[str, Tensor], groups: list[list[str]], network_class: Any, config: Any
) -> None:
    with torch.device("cpu"), torch.random.fork_rng(devices=[]):
        loaded, info = network_class.from_pretrained(
            str(folder),
            config=config,
            local_files_only=True,
            trust_remote_code=False,
            weights_only=True,
            dtype=torch.float32,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    problems = [f"{name} is not in the folder" for name in sorted(info["missing_keys"])]
    problems += [
        f"{name} is {tuple(there)} in the folder and {tuple(here)} in the model"
        for name, there, here in sorted(info["mismatched_keys"])
    ]
    state = loaded.state_dict()
    problems += [f"{name} is not in the folder" for name in live if name not in state]
    if problems:
        raise CheckpointError(
            f"weights in {folder} must set every parameter of {network_class.__name__}; choose the architecture that "
            "was saved, or build it with random weights from config\n  " + "\n  ".join(problems)
        )
    for names in groups:
        copy_part(live[names[0]], state[names[0]].__getitem__)


def require_rules(network: nn.Module, rules: list[Rule], *, random: bool) -> None:
    """Refuse a network with tensors that nothing would set.

    Args:
        network: On meta.
        rules: Its own.
        random: Whether parameters are set by rules too, not only buffers that no file holds.

    Raises:
        ConfigError: Names them.
    """
    ruled = {id(place.tensor) for rule in rules for place in rule.sets.values()}
    stored = {id(tensor) for tensor in network.state_dict(keep_vars=True).values()}
    missing = [
        name
        for name, place in places(network).items()
        if id(place.tensor) not in ruled and (random or id(place.tensor) not in stored)
    ]
    if missing:
        raise ConfigError(
            f"{type(network).__name__} must say how each of its tensors begins, and its _init_weights does not for "
            f"{', '.join(missing)}; choose another architecture" + (" or load weights from path" if random else "")
        )
