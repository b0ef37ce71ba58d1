"""Initial weights that depend on the seed and each parameter's name, and on nothing else."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterator, Sequence
from typing import Literal

import torch
from torch import nn

from modlib.components import component
from modlib.models.seeded_normal import fill_normal
from modlib.runtime.errors import ConfigError

# What torch.compile and activation checkpointing put into names.
_WRAPPER_NAMES = re.compile(r"(_orig_mod|_checkpoint_wrapped_module)\.")
_NORMS = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm)
_MATRICES = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def plain_name(name: str) -> str:
    """A parameter's name without what wrappers added to it."""
    return _WRAPPER_NAMES.sub("", name)


def _owned_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Module, str, nn.Parameter]]:
    """(module name, module, leaf name, parameter), each parameter once."""
    seen: set[int] = set()
    for prefix, module in model.named_modules():
        for leaf, parameter in module.named_parameters(recurse=False):
            if id(parameter) not in seen:
                seen.add(id(parameter))
                yield plain_name(f"{prefix}.").rstrip("."), module, leaf, parameter


@component("model_initialization", "composed")
class ComposedInitializer:
    """Normal matrices and embeddings, residual projections scaled down with depth, zero biases, unit norms.

    Every parameter is claimed by exactly one rule; one that no rule claims, or two do, is an error with its name.
    The defaults are GPT-2's. A parameter's value is a function of (seed, name): the world size, the sharding and the
    order of parameters do not change a bit of it.

    Args:
        weight_init_type: "scaled" divides std by sqrt(2 * num_layers) for matrices whose output is added to the
            residual stream; "plain" does not; "scaled_embed" is "scaled" with embeddings at std sqrt(0.4).
        mean: Of the normal distribution.
        std: Of the normal distribution, or "auto" for sqrt(2 / (5 * dim)).
        num_layers: Depth for "scaled"; default the model's own num_layers.
        dim: Width for std="auto"; default the model's own dim.
        residual_outputs: Names, or last parts of names, of the modules that write to the residual stream.

    Raises:
        ConfigError: Unknown type, negative std, or a parameter without exactly one rule.

    Source: Radford et al. 2019, GPT-2, section 2.3 (scaling); Nguyen and Salazar 2019, Transformers without Tears,
    section 2.2 ("auto"); Takase et al. 2023, Spike No More ("scaled_embed").
    """

    def __init__(
        self,
        weight_init_type: Literal["plain", "scaled", "scaled_embed"] = "scaled",
        mean: float = 0.0,
        std: float | Literal["auto"] = 0.02,
        num_layers: int | None = None,
        dim: int | None = None,
        residual_outputs: Sequence[str] = ("attention.out", "feed_forward.down"),
    ) -> None:
        problems = []
        if weight_init_type not in ("plain", "scaled", "scaled_embed"):
            problems.append(f"weight_init_type ({weight_init_type!r}) must be 'plain', 'scaled' or 'scaled_embed'")
        if std != "auto" and (isinstance(std, str) or not std >= 0):
            problems.append(f"std ({std!r}) must be a number of at least 0, or 'auto'")
        for name, value in (("num_layers", num_layers), ("dim", dim)):
            if value is not None and value < 1:
                problems.append(f"{name} ({value}) must be at least 1")
        if problems:
            raise ConfigError(problems)
        self.weight_init_type, self.mean, self.std = weight_init_type, mean, std
        self.num_layers, self.dim, self.residual_outputs = num_layers, dim, tuple(residual_outputs)

    def __call__(self, model: nn.Module, seed: int, skip: Collection[str] = ()) -> None:
        """Set every parameter of the model in place, sharded (DTensor) or not.

        Nothing is touched when any parameter lacks a rule.

        Args:
            model: On a real device, after `to_empty` if it was built on meta.
            seed: Any integer.
            skip: Names of parameters that something else sets.
        """
        plan = self._plan(model, skip)
        stds = self._stds(model)
        with torch.no_grad():
            for name, parameter, rule in plan:
                if rule in stds:
                    fill_normal(parameter, seed=seed, name=name, mean=self.mean, std=stds[rule])
                else:
                    parameter.fill_(1.0 if rule == "norm" else 0.0)

    def _claims(self, module_name: str, module: nn.Module, leaf: str) -> list[str]:
        """Every rule that claims this parameter."""
        is_residual = any(f".{module_name}".endswith(f".{output}") for output in self.residual_outputs)
        is_matrix = isinstance(module, _MATRICES) and leaf == "weight"
        rules = {
            "norm": leaf == "weight" and (isinstance(module, _NORMS) or type(module).__name__.endswith("Norm")),
            "bias": leaf == "bias",
            "embedding": isinstance(module, nn.Embedding) and leaf == "weight",
            "residual": is_matrix and is_residual,
            "matrix": is_matrix and not is_residual,
        }
        return [rule for rule, claimed in rules.items() if claimed]

    def _plan(self, model: nn.Module, skip: Collection[str]) -> list[tuple[str, nn.Parameter, str]]:
        """(name, parameter, rule) for every parameter."""
        plan, problems = [], []
        for module_name, module, leaf, parameter in _owned_parameters(model):
            name = f"{module_name}.{leaf}" if module_name else leaf
            if name in skip:
                continue
            claims = self._claims(module_name, module, leaf)
            if parameter.device.type == "meta":
                problems.append(f"parameter {name} is on the meta device; call model.to_empty(device=...) first")
            elif len(claims) == 1:
                plan.append((name, parameter, claims[0]))
            else:
                problems.append(
                    f"parameter {name} of {type(module).__name__} is claimed by {' and '.join(claims) or 'no rule'}, "
                    "must be exactly one; hold it in a module that has a rule (Linear, Embedding, Conv, LayerNorm, "
                    "RMSNorm, a class named *Norm) or write another model_initialization"
                )
        if self.weight_init_type != "plain" and not problems and all(rule != "residual" for _, _, rule in plan):
            problems.append(
                f"residual_outputs ({', '.join(self.residual_outputs)}) must name a matrix of {type(model).__name__} "
                f"for weight_init_type ({self.weight_init_type!r}); name those that write to the residual stream, or "
                "set weight_init_type = 'plain'"
            )
        if problems:
            raise ConfigError(problems)
        return plan

    def _stds(self, model: nn.Module) -> dict[str, float]:
        """The standard deviation of each rule that draws."""

        def size(name: str, given: int | None, reason: str) -> int:
            value = given if given is not None else getattr(model, name, None)
            if not isinstance(value, int):
                raise ConfigError(f"{name} (None) must be given for {reason}: {type(model).__name__} has no {name}")
            return value

        std = math.sqrt(2 / (5 * size("dim", self.dim, "std ('auto')"))) if self.std == "auto" else float(self.std)
        stds = {"matrix": std, "embedding": std, "residual": std}
        if self.weight_init_type != "plain":
            layers = size("num_layers", self.num_layers, f"weight_init_type ({self.weight_init_type!r})")
            stds["residual"] = std / math.sqrt(2 * layers)
        if self.weight_init_type == "scaled_embed":
            stds["embedding"] = math.sqrt(0.4)
        return stds
