"""Which losses does a transformers model compute beside next tokens, given labels, and which of them are trained?

Labels are never given to it here: the loss of the run is computed from its logits. The balance loss of routers joins
the objective; what else only labels would switch on is refused where it was set, and told where it is a default.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any

import torch

from modlib.nn.routing import RouterLoss, Routing, usage
from modlib.runtime.errors import ConfigError

_COEFFICIENTS = ("router_aux_loss_coef", "aux_loss_coef")
# Fields that act only on the loss that transformers computes of labels -> the value at which they do nothing.
LABELS_ONLY = {"z_loss_coefficient": 0.0, "disable_ngram_loss": True}
# Layers that predict further tokens: transformers keeps the fields and builds no such layers.
_NOT_BUILT = ("num_mtp_layers", "num_nextn_predict_layers", "mtp_loss_scaling_factor")


def losses_of(
    network: Any, path: str | None, config: Mapping[str, Any] | str | None, overrides: Mapping[str, Any]
) -> tuple[RouterLoss | None, list[str]]:
    """The balance loss that a model's config asks for, and a line for each loss in the config that nobody trains.

    Args:
        network: The transformers model.
        path: As of HuggingFacePretrainedModel, like the others: what was set by hand is refused where it does nothing,
            what a folder or transformers says is told.
        config: A mapping of fields, or where they are read from.
        overrides: Fields.

    Raises:
        ConfigError: Fields that would do nothing.
    """
    given = {**(config if isinstance(config, Mapping) else {}), **overrides}

    def said(name: str, value: Any) -> str:
        source = "overrides" if name in overrides else "config" if path is None else f"path ('{path}')"
        return f"{source}: {name} ({value})"

    problems, notes = _labels_only(network.config, given, said)
    coefficient = next((value for name in _COEFFICIENTS if (value := getattr(network, name, None)) is not None), None)
    wanted = getattr(network.config, "output_router_logits", False)
    names = [name for name in _COEFFICIENTS if given.get(name)]
    kind = network.config.model_type
    if coefficient is None or not _is_the_usual(network):
        of = f"'{kind}', of which transformers has no balance loss that can be trained here"
        problems += [f"{said(name, given[name])} must not be set for {of}; leave it out" for name in names]
        if wanted:
            problems.append(f"{said('output_router_logits', True)} must be False for {of}; set it to False")
    elif not _has_routers(network):
        if wanted:
            problems.append(
                f"{said('output_router_logits', True)} must be False where no layer of '{kind}' has experts that a "
                "router chooses; set it to False, or give the model such layers"
            )
    elif not wanted and names and "output_router_logits" not in given:
        problems += [
            f"{said(name, given[name])} must come with output_router_logits = True, without which transformers leaves "
            "the balance loss out; add it, or leave the coefficient out"
            for name in names
        ]
    elif not wanted and coefficient:
        notes.append(
            f"the balance loss of the routers (coefficient {coefficient:g}) is not trained: experts may fall out of "
            "use; output_router_logits = True in the model's config or overrides adds it"
        )
    if problems:
        raise ConfigError(problems)
    if not wanted or coefficient is None:
        return None, notes
    return RouterLoss(int(network.num_experts), int(network.num_experts_per_tok), float(coefficient)), notes


def _labels_only(config: Any, given: Mapping[str, Any], said: Callable[[str, Any], str]) -> tuple[list[str], list[str]]:
    """What is wrong with fields that act on labels alone, and what is left out of the architecture's own training."""
    problems, notes = [], []
    for name, neutral in LABELS_ONLY.items():
        value = getattr(config, name, neutral)
        if value == neutral:
            continue
        if name in given or value != getattr(type(config)(), name):
            problems.append(
                f"{said(name, value)} must be {neutral}: it acts only on the loss that transformers computes of "
                f"labels, and train.loss takes its place; set it to {neutral}"
            )
        else:
            notes.append(f"{name} ({value}) acts only on the loss that transformers computes of labels; it is left out")
    for name in _NOT_BUILT:
        if given.get(name):
            problems.append(
                f"{said(name, given[name])} must be 0: transformers builds no layers for the prediction of several "
                "tokens; leave it out or set it to 0"
            )
        elif name not in config.attribute_map and getattr(config, name, None):
            notes.append(f"{name} ({getattr(config, name)}): transformers builds no such layers; they are not trained")
    return problems, notes


def _is_the_usual(network: Any) -> bool:
    """Whether the architecture's balance loss is the one of `nn/routing.py`, as that of nearly all of them is."""
    theirs = getattr(sys.modules[type(network).__module__], "load_balancing_loss_func", None)
    if theirs is None:
        return False
    experts, top_k = int(network.num_experts), int(network.num_experts_per_tok)
    with torch.device("cpu"):
        generator = torch.Generator().manual_seed(0)
        layers = tuple(torch.randn(6, experts, generator=generator) for _ in range(2))
        mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
        try:
            expected = theirs(layers, experts, top_k, mask)
        except Exception:  # of another shape: their code, for their routers
            return False
        ours = usage(Routing([(layers, mask)]), top_k)
        return torch.allclose(ours.share(ours.numbers()), expected, rtol=1e-4)


def _has_routers(network: Any) -> bool:
    """Whether any layer has a router whose logits transformers records: sizes may leave all layers dense."""
    kinds: list[Any] = []
    for module in network.modules():
        recorders = (getattr(module, "_can_record_outputs", None) or {}).get("router_logits", [])
        for one in recorders if isinstance(recorders, list) else [recorders]:
            kinds.append(getattr(one, "target_class", one))
    return not kinds or any(isinstance(module, tuple(kinds)) for module in network.modules())
