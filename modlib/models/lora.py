"""LoRA: a model whose weights stay as they are, with small trainable matrices beside some of its layers."""

from __future__ import annotations

import difflib
import logging
import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from modlib.components import component
from modlib.models.gpt2 import GPT2
from modlib.models.initialization import plain_name
from modlib.models.seeded_normal import fill_normal, fill_uniform
from modlib.models.weights import add_weights, named_state, weight_sources
from modlib.nn.lora_layers import (
    SUPPORTED,
    LoRAEmbedding,
    LoRALayer,
    adapt,
    is_layer,
    refusal,
)
from modlib.optim.roles import parameter_roles
from modlib.runtime.errors import ConfigError

logger = logging.getLogger("modlib")

ADAPTERS = ("lora_A", "lora_B")
READ_TABLES = {
    "GPT2": ("position_embedding",),
    "CoCa": ("position_embedding", "class_embedding"),
    "VisionTransformer": ("position_embedding",),
    "AttentionPooling": ("queries",),
}
"""Layers that are never called, by the class that holds them: it reads their weight, and would read past an adapter."""


@component("model", "lora", not_science=("adapter_only_checkpoints",))
def LoRAModel(
    model: Callable[[], nn.Module],
    *,
    r: int,
    alpha: float,
    targets: Sequence[str],
    dropout: float = 0.0,
    bias: Literal["none", "all", "lora_only"] = "none",
    adapter_only_checkpoints: bool = True,
) -> nn.Module:
    """A model with low-rank adapters beside some of its layers, which are all that is trained.

    A target layer computes W x + alpha / r * B A dropout(x), beginning at W x exactly. Every name stays: `q.weight`
    is still that, so a checkpoint of the plain model loads, and `q.lora_A`, `q.lora_B` come with it. W never changes,
    not in eval() either; `merged_state_dict` computes the plain model's weights.

    A target is a regular expression that must match a layer's whole name, or its end from a dot on: 'q_proj' matches
    every layer of that name, '(q|v)_proj' two kinds, 'blocks.0.attention.qkv' one layer. Linear, Embedding, Conv1d,
    Conv2d, Conv3d and transformers' Conv1D can be adapted, a fused projection as the one layer it is. What a target
    matches beside them (a norm, a block) is passed over; a target that matches no layer is an error.

    With a tied output projection, an adapted token embedding changes the lookup alone: the output keeps the plain
    table. Such a model trains, but no plain model equals it, so it cannot be merged. A layer whose weight is read
    without calling it cannot be adapted: a position_embedding, GPT2.lm_head under a loss that never holds all logits,
    dt_proj of Mamba. Nor can experts that one parameter holds together. The plan looks at one forward for that, and the
    first step at the gradients.

    Args:
        model: Returns the plain model; its weights come from where they would come without adapters.
        r: Rank of the updates; at least 1, for a convolution a multiple of its groups.
        alpha: Updates are scaled by alpha / r; above 0.
        targets: Which layers, see above.
        dropout: Share of each adapter's inputs dropped in training, in [0, 1). Embeddings drop nothing.
        bias: Which biases of the plain model are trained too: "none", "all", or those of the target layers.
        adapter_only_checkpoints: A checkpoint holds trained parameters and buffers only. The frozen ones come from
            their own source again on resume, which must still be there and the same.

    Returns:
        The plain model itself, changed. A model in memory gets its adapters now, with seed 0; one on the meta device
        when the run initialises it, each value a function of (seed, name).

    Raises:
        ConfigError: Values out of range, targets that match nothing or cannot be adapted; all problems at once.

    Source: Hu et al. 2021, LoRA, section 4.1. Initial values as in microsoft/LoRA (loralib/layers.py) and peft: A
    uniform in 1 / sqrt(fan in), B zeros; for embeddings A zeros, B standard normal. A convolution with groups has
    its adapter in the same groups, where peft has one that cannot be merged.
    """
    _check(r, alpha, targets, dropout, bias)
    built = model()
    layers = _target_layers(built, targets, r)
    sources = [replace(source, fill=_fill_plain(source.fill)) for source in weight_sources(built)]
    built.requires_grad_(False)
    for module in layers.values():
        adapt(module, r=r, alpha=alpha, dropout=dropout)
    for module in built.modules() if bias == "all" else layers.values() if bias == "lora_only" else ():
        for leaf, parameter in module.named_parameters(recurse=False):
            if "bias" in leaf:
                parameter.requires_grad_(True)
    built.adapter_only_checkpoints = adapter_only_checkpoints  # type: ignore[assignment]  # see checkpointing.state
    if sources:
        built.weight_sources = sources  # type: ignore[assignment]
    if isinstance(built, GPT2) and isinstance(built.lm_head, LoRALayer):
        built.register_forward_pre_hook(_refuse_head, with_kwargs=True)
    for name, other in tied_adapters(built).items():
        logger.warning("%s is adapted and tied to %s, which stays as it is: this model cannot be merged", name, other)
    add_weights(built, _fill_adapters, [f"{name}.{leaf}" for name in layers for leaf in ADAPTERS])
    return built


def merged_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """The weights of the plain model that computes the same: names without adapters, W + scaling * delta.

    Whole tensors on the CPU, in the dtype of the model and merged in float32; copies, so the model in training is left
    as it is, and a second call gives the same bits. A model without adapters gives its weights.

    Args:
        model: From LoRAModel, in memory; sharded by FSDP2 it is a collective, which gives all ranks the same.

    Raises:
        ConfigError: An adapted weight is tied to another, so that no plain weight does what it does.
    """
    refuse_ties(model)
    layers = dict(adapters(model, remove_duplicate=False))
    merged: dict[str, Tensor] = {}
    with torch.no_grad(), torch.autocast("cpu", enabled=False):
        for name, tensor in named_state(model).items():
            module_name, _, leaf = name.rpartition(".")
            layer = layers.get(module_name)
            if layer is not None and leaf in ADAPTERS:
                continue
            merged[name] = _whole(tensor)
            if layer is not None and leaf == "weight":
                merged[name] = merged_weight(layer, merged[name], _whole(layer.lora_A), _whole(layer.lora_B))
    return merged


def refuse_ties(model: nn.Module) -> None:
    """Refuse a model whose adapters cannot be merged; it may be on meta.

    Raises:
        ConfigError: An adapted weight is tied to another, so that no plain weight does what it does.
    """
    if ties := tied_adapters(model):
        raise ConfigError(
            [
                f"{name} is adapted and tied to {other}, must be untied to be merged: the plain model would change "
                "both; leave it out of targets or train a model that is not tied (GPT2.tie_embeddings = False)"
                for name, other in ties.items()
            ]
        )


def merged_weight(layer: LoRALayer, weight: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """The weight of the plain layer that computes what this one does with its adapter, in the weight's dtype.

    On the CPU, where no setting lowers the precision of a float32 product.

    Args:
        layer: Says how; its own tensors are not looked at.
        weight: Whole, as are the adapters a and b.
    """
    return (weight.float() + layer.scaling * layer.delta(a.float(), b.float())).to(weight.dtype)


def _whole(tensor: Tensor) -> Tensor:
    """A copy of the whole tensor on the CPU."""
    if hasattr(tensor, "full_tensor"):  # a DTensor
        tensor = tensor.full_tensor()
    return tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)


def adapters(model: nn.Module, *, remove_duplicate: bool = True) -> Iterator[tuple[str, LoRALayer]]:
    """Adapted layers by plain name; with remove_duplicate=False, a shared one under each of its names."""
    for name, module in model.named_modules(remove_duplicate=remove_duplicate):
        if isinstance(module, LoRALayer):
            yield plain_name(f"{name}.").rstrip("."), module


def _check(r: int, alpha: float, targets: Sequence[str], dropout: float, bias: str) -> None:
    problems = []
    if r < 1:
        problems.append(f"r ({r}) must be at least 1; 8 is usual")
    if not (alpha > 0 and math.isfinite(alpha)):
        problems.append(f"alpha ({alpha}) must be above 0; r or 2 r is usual")
    if not 0 <= dropout < 1:
        problems.append(f"dropout ({dropout}) must be in [0, 1); 0 turns it off")
    if bias not in ("none", "all", "lora_only"):
        problems.append(f"bias ({bias!r}) must be 'none', 'all' or 'lora_only'")
    if isinstance(targets, str):
        problems.append(f"targets ({targets!r}) must be a list; write [{targets!r}]")
    elif not targets:
        problems.append("targets ([]) must name at least one layer, such as 'q_proj'")
    else:
        for target in targets:
            try:
                re.compile(target)
            except re.error as error:
                problems.append(f"targets ({target!r}) must be a regular expression: {error}")
    if problems:
        raise ConfigError(problems)


def _target_layers(model: nn.Module, targets: Sequence[str], r: int) -> dict[str, nn.Module]:
    """The layers that any target matches, by plain name.

    Raises:
        ConfigError: A target matches no layer, or one that cannot be adapted.
    """
    modules = {plain_name(f"{name}.").rstrip("."): module for name, module in model.named_modules() if name}
    problems: list[str] = []
    found: dict[str, nn.Module] = {}
    experts = _fused_experts(model)
    for target in targets:
        pattern = re.compile(rf"(?:.*\.)?(?:{target})")
        matched = [name for name in modules if pattern.fullmatch(name)]
        layers = {name: modules[name] for name in matched if is_layer(modules[name])}
        found |= layers
        fused = next((name for called, name in experts.items() if pattern.fullmatch(called)), None)
        if fused and layers:
            logger.warning("targets (%r): experts are left out; %s", target, _WHY_NOT_EXPERTS.format(fused))
        elif fused:
            problems.append(
                f"targets ({target!r}) must match a layer of {type(model).__name__}; it means experts, and "
                f"{_WHY_NOT_EXPERTS.format(fused)}; {_hint(modules, target)}"
            )
        elif matched and not layers:
            first = f"{matched[0]} ({type(modules[matched[0]]).__name__})"
            problems.append(f"targets ({target!r}) must match one of {SUPPORTED}; it matches {first}")
        elif not matched:
            problems.append(
                f"targets ({target!r}) must match a layer of {type(model).__name__}; {_hint(modules, target)}"
            )
    uncalled = {id(getattr(parent, leaf)) for parent in model.modules() for leaf in _read_tables(parent)}
    for name, module in found.items():
        if id(module) in uncalled:
            problems.append(f"{name} cannot be adapted: its weight is read without calling it; leave it out of targets")
        elif reason := refusal(module, r):
            problems.append(f"{name} {reason}")
    if problems:
        raise ConfigError(problems)
    return found


_WHY_NOT_EXPERTS = "{} holds all experts of its layer in one parameter, which cannot be adapted"


def _fused_experts(model: nn.Module) -> dict[str, str]:
    """What a target may call the experts, or a part of them -> name of the parameter that holds them."""
    called: dict[str, str] = {}
    for name, role in parameter_roles(model).items():
        if role == "experts":
            path, _, leaf = plain_name(name).rpartition(".")
            parts = ("gate_proj", "up_proj") if leaf == "gate_up_proj" else ()
            called |= dict.fromkeys((path, f"{path}.{leaf}", *(f"{path}.{part}" for part in parts)), plain_name(name))
    return called


def _read_tables(parent: nn.Module) -> Iterator[str]:
    for kind in type(parent).__mro__:  # sharding makes a subclass of it
        yield from READ_TABLES.get(kind.__name__, ())


def _hint(modules: dict[str, nn.Module], target: str) -> str:
    """Layers with names like the target; where none is, the first ones there are."""
    names = [name.split(".") for name, module in modules.items() if is_layer(module)]
    ends = {parts[-1]: None for parts in names}  # in order, each once
    longer = {".".join(parts[-count:]): None for parts in names for count in (2, len(parts))}
    close = difflib.get_close_matches(target, {**ends, **longer}, n=3)
    return f"closest: {', '.join(close)}" if close else f"its layers are {', '.join([*ends][:8])}"


def tied_adapters(model: nn.Module) -> dict[str, str]:
    """Names of adapted weights that are used elsewhere too -> where."""
    model = getattr(model, "_orig_mod", model)  # under torch.compile
    users: dict[int, list[str]] = {}
    for name, module in model.named_modules():  # a module under two names is one layer; a weight in two modules is not
        for leaf, parameter in module.named_parameters(recurse=False):
            users.setdefault(id(parameter), []).append(plain_name(f"{name}.{leaf}"))
    for module in model.modules():
        if {"GPT2", "CoCa"} & {kind.__name__ for kind in type(module).__mro__} and not getattr(module, "lm_head", None):
            users[id(cast(nn.Embedding, module.token_embedding).weight)].append("the output projection")
    ties: dict[str, str] = {}
    for name, layer in adapters(model):
        others = [user for user in users[id(layer.weight)] if user != f"{name}.weight"]
        if others:
            ties[f"{name}.weight"] = ", ".join(others)
    return ties


def _refuse_head(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """A given head gets lm_head's weight, not its adapter."""
    if len(args) > 1 or "head" in kwargs:
        raise ConfigError(
            "lm_head is adapted, and the loss reads its weight without calling it; leave lm_head out of targets, or "
            "use a loss of all logits (train.loss = @CLMCrossEntropyLoss)"
        )


def _fill_adapters(model: nn.Module, seed: int) -> None:
    """Set all adapters to where the model computes what it does without them."""
    with torch.no_grad():
        for name, layer in adapters(model):
            a, b = layer.lora_A, layer.lora_B
            if isinstance(layer, LoRAEmbedding):
                a.zero_()
                fill_normal(b, seed=seed, name=f"{name}.lora_B", mean=0.0, std=1.0)
            else:
                bound = 1 / math.sqrt(math.prod(a.shape[1:]))  # kaiming_uniform_ with a = sqrt(5)
                fill_uniform(a, seed=seed, name=f"{name}.lora_A", low=-bound, high=bound)
                b.zero_()


def _fill_plain(fill: Callable[[nn.Module, int], None]) -> Callable[[nn.Module, int], None]:
    """A source of the plain model's weights, which must match exactly that model's names."""

    def fill_without_adapters(model: nn.Module, seed: int) -> None:
        with _without_adapters(model):
            fill(model, seed)

    return fill_without_adapters


@contextmanager
def _without_adapters(model: nn.Module) -> Iterator[None]:
    """The model as it was before it got adapters, as far as names and checkpoints tell."""
    adapter_only, model.adapter_only_checkpoints = model.adapter_only_checkpoints, False  # type: ignore[assignment]
    layers = [layer for _, layer in adapters(model)]
    hidden = [{leaf: layer._parameters.pop(leaf) for leaf in ADAPTERS} for layer in layers]
    try:
        yield
    finally:
        for layer, parameters in zip(layers, hidden, strict=True):
            layer._parameters.update(parameters)
        model.adapter_only_checkpoints = adapter_only
