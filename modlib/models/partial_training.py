"""How much of backward is left to do when a part of the model is frozen."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from modlib.nn.lora_layers import LoRALayer
from modlib.optim.roles import parameter_roles

_PARALLEL = {
    name: together
    for together in (
        ("q_proj", "k_proj", "v_proj", "q_a_proj", "kv_a_proj_with_mqa"),
        ("query", "key", "value"),
        ("gate_proj", "up_proj"),
        ("w1", "w3"),
        ("gate", "router", "experts", "shared_expert", "shared_experts", "shared_expert_gate"),
    )
    for name in together
}
"""Layers that read the same values: none comes after another."""
_AFTER_SCORES = ("out", "o_proj", "out_proj", "c_proj", "dense", "output", "wo")
"""Names of the layer of an attention that comes after its scores."""


@dataclass(frozen=True)
class Work:
    """Multiply-adds of one token, by what they are for.

    Args:
        forward: Of the output.
        weight_gradients: Of the gradients of trained matrices.
        input_gradients: Of the gradients of values that depend on something trained.
        attention_share: Share of the layers whose attention scores have a backward pass.
    """

    forward: float
    weight_gradients: float
    input_gradients: float
    attention_share: float


def partial_work(model: nn.Module, uses: Mapping[str, float]) -> Work | None:
    """The work of a partly frozen model; None where everything is trained.

    A matrix costs one multiply-add per number and use in forward, as many for its own gradient where it is trained, and
    as many for the gradient of its input where that depends on something trained: from the first trained layer on. The
    order of layers is that in which they are registered, and those that read the same values, as query, key and value
    do, are beside one another. Vectors cost nothing.

    Args:
        model: Parameters are frozen by requires_grad.
        uses: Name of each parameter that is multiplied -> multiply-adds per token, its size if it is used once. An
            embedding is in it where it is the output matrix, too.
    """
    parameters = dict(model.named_parameters())
    if all(parameter.requires_grad for parameter in parameters.values()):
        return None
    places = _places(list(parameters))
    first = min((places[name] for name, p in parameters.items() if p.requires_grad), default=len(places))
    roles, modules = parameter_roles(model), dict(model.named_modules())
    forward = weights = inputs = 0.0
    for name, count in uses.items():
        parameter = parameters[name]
        if parameter.ndim < 2 or roles[name] in ("bias", "vector", "state_space"):
            continue
        path, _, leaf = name.rpartition(".")
        if leaf == "lora_A" and isinstance(modules[path], nn.Embedding):  # rows of it are looked up
            continue
        reads_trained = places[name] > first or (leaf == "lora_B" and isinstance(modules[path], LoRALayer))
        if roles[name] == "embedding" and leaf == "weight":  # tied: it is the last layer that multiplies with it
            reads_trained = first < len(places)
        forward += count
        weights += count if parameter.requires_grad else 0
        inputs += count if reads_trained else 0
    return Work(forward, weights, inputs, _attention_share(places, first))


def _places(names: list[str]) -> dict[str, int]:
    """When each parameter is used, as a number: equal for layers that read the same values."""
    order: dict[Any, int] = {}
    places = {}
    for name in names:
        path = name.split(".")[:-1]
        for index, part in enumerate(path):
            if part in _PARALLEL:
                path = [*path[:index], _PARALLEL[part][0]]
                break
        places[name] = order.setdefault(tuple(path), len(order))
    return places


def _attention_share(places: Mapping[str, int], first: int) -> float:
    """The share of blocks in which what attention scores are made of depends on something trained."""
    last_before_scores: dict[str, int] = {}
    for name, place in places.items():
        if not (found := re.match(r"(.*?\.\d+)\.(.*)", name)):
            continue
        block, inner = found.groups()
        parts = inner.split(".")[:-1]
        attention = next((index for index, part in enumerate(parts) if "attn" in part or "attention" in part), None)
        if attention is not None and not {*parts[attention + 1 :]} & {*_AFTER_SCORES} and len(parts) > attention + 1:
            last_before_scores[block] = max(place, last_before_scores.get(block, 0))
    if not last_before_scores:
        return 1.0 if first < len(places) else 0.0
    return sum(place >= first for place in last_before_scores.values()) / len(last_before_scores)
