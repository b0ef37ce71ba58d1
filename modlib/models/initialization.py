"""Initial weights that depend on the seed and each parameter's name, and on nothing else."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from modlib.components import component
from modlib.models.seeded_normal import fill_normal
from modlib.runtime.errors import ConfigError

# What torch.compile and activation checkpointing put into names.
_WRAPPER_NAMES = re.compile(r"(_orig_mod|_checkpoint_wrapped_module)\.")
_NORMS = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, _NormBase)
_EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)
_ATTENTION_MATRICES = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight", "bias_k", "bias_v")
# The value of each rule that draws nothing.
_CONSTANTS = {"norm": 1.0, "ones": 1.0, "bias": 0.0, "zeros": 0.0}
DECLARABLE = ("embedding", "matrix", "residual", "zeros", "ones")
"""What a module class may say of its own parameters: `parameter_rules = {"query": "embedding"}`."""


def plain_name(name: str) -> str:
    """A parameter's name without what wrappers added to it."""
    return _WRAPPER_NAMES.sub("", name)


def class_name(module: nn.Module) -> str:
    """The name of a module's class, as it was before FSDP2 made a subclass of it."""
    kind = type(module)
    return (kind.__bases__[1] if isinstance(module, FSDPModule) else kind).__name__


def _owned_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Module, str, nn.Parameter]]:
    """(module name, module, leaf name, parameter), each parameter once."""
    seen: set[int] = set()
    for prefix, module in model.named_modules():
        for leaf, parameter in module.named_parameters(recurse=False):
            if id(parameter) not in seen:
                seen.add(id(parameter))
                yield plain_name(f"{prefix}.").rstrip("."), module, leaf, parameter


def _is_std(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf


def _is_linear(module: nn.Module) -> bool:
    """Whether a module's `weight` is a matrix or a convolution's kernel.

    transformers' Conv1D, a Linear with the axes (in, out), is known by its name, also where FSDP2 made it a subclass.
    """
    named = any(kind.__name__ == "Conv1D" for kind in type(module).__mro__)
    return named or isinstance(module, nn.Linear | nn.Bilinear | _ConvNd)


@component("model_initialization", "composed")
class ComposedInitializer:
    """Normal matrices and embeddings, residual projections scaled down with depth, zero biases, unit norms.

    Every parameter is claimed by exactly one rule; one that no rule claims, or two do, is an error with its name.
    The defaults are GPT-2's. A parameter's value is a function of (seed, name): the world size, the sharding, compiling
    and activation checkpointing do not change a bit of it.

    Matrices are the weights of Linear, convolutions, transformers' Conv1D and the projections inside
    torch.nn.MultiheadAttention. A module class with raw parameters, such as a learned query, says what they are:
    `parameter_rules = {"query": "embedding"}`, with "embedding", "matrix", "residual", "zeros" or "ones".

    Args:
        weight_init_type: "scaled" divides std by sqrt(2 * num_layers) for matrices whose output is added to the
            residual stream; "plain" does not; "scaled_embed" is "scaled" with embeddings at std sqrt(0.4).
        mean: Of the normal distribution.
        std: Of the normal distribution, or "auto" for sqrt(2 / (5 * dim)).
        num_layers: Depth for "scaled"; default the model's own num_layers.
        dim: Width for std="auto"; default the model's own dim.
        residual_outputs: Names, or last parts of names, of the modules that write to the residual stream.
        rules: Your own rules, which go before all others: a regular expression that matches a parameter's whole name
            ("blocks.0.attention.out.weight"; a shared parameter goes by its first name) -> its std; 0 for all zeros.
            Each must match a parameter, and no parameter may match two.

    Raises:
        ConfigError: Unknown type, a std that is negative or not finite, a parameter without exactly one rule, or a
            rule of yours that matches nothing.

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
        rules: Mapping[str, float] | None = None,
    ) -> None:
        problems = []
        if weight_init_type not in ("plain", "scaled", "scaled_embed"):
            problems.append(f"weight_init_type ({weight_init_type!r}) must be 'plain', 'scaled' or 'scaled_embed'")
        if not isinstance(mean, int | float) or not math.isfinite(mean):
            problems.append(f"mean ({mean!r}) must be a finite number")
        if std != "auto" and not _is_std(std):
            problems.append(f"std ({std!r}) must be a number of at least 0, or 'auto'")
        for name, value in (("num_layers", num_layers), ("dim", dim)):
            if value is not None and value < 1:
                problems.append(f"{name} ({value}) must be at least 1")
        self.rules: dict[str, tuple[re.Pattern[str], float]] = {}
        for pattern, number in (rules or {}).items():
            if not _is_std(number):
                problems.append(f"std of rule {pattern!r} ({number!r}) must be a number of at least 0; 0 is all zeros")
            try:
                self.rules[pattern] = re.compile(pattern), float(number) if _is_std(number) else 0.0
            except re.error as error:
                problems.append(f"rules ({pattern!r}) must be regular expressions: {error}")
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
        on_meta = [name for name, parameter, _ in plan if parameter.device.type == "meta"]
        if on_meta:
            raise ConfigError(
                [f"parameter {name} is on the meta device; call model.to_empty(device=...) first" for name in on_meta]
            )
        with torch.no_grad():
            for name, parameter, rule in plan:
                std = self.rules[rule][1] if rule in self.rules else stds.get(rule)
                if std is None or (rule in self.rules and std == 0):
                    parameter.fill_(_CONSTANTS.get(rule, 0.0))
                else:
                    fill_normal(parameter, seed=seed, name=name, mean=self.mean, std=std)

    def check(self, model: nn.Module, skip: Collection[str] = ()) -> None:
        """Refuse what calling it with a model like this one would refuse; the model may be on meta."""
        self._plan(model, skip)
        self._stds(model)

    def _claims(self, module_name: str, module: nn.Module, leaf: str) -> list[str]:
        """Every rule that claims this parameter; what its class declares goes before what its kind suggests."""
        declared: Mapping[str, str] = getattr(type(module), "parameter_rules", {})
        if leaf in declared:
            if declared[leaf] not in DECLARABLE:
                raise ConfigError(
                    f"parameter_rules of {class_name(module)} ({leaf!r}: {declared[leaf]!r}) must be one of "
                    f"{', '.join(DECLARABLE)}"
                )
            return [declared[leaf]]
        is_residual = any(f".{module_name}".endswith(f".{output}") for output in self.residual_outputs)
        in_attention = isinstance(module, nn.MultiheadAttention)
        is_matrix = (leaf == "weight" and _is_linear(module)) or (in_attention and leaf in _ATTENTION_MATRICES)
        rules = {
            "norm": leaf == "weight" and (isinstance(module, _NORMS) or class_name(module).endswith("Norm")),
            "bias": leaf == "bias" or (in_attention and leaf == "in_proj_bias"),
            "embedding": isinstance(module, _EMBEDDINGS) and leaf == "weight",
            "residual": is_matrix and is_residual,
            "matrix": is_matrix and not is_residual,
        }
        return [rule for rule, claimed in rules.items() if claimed]

    def _plan(self, model: nn.Module, skip: Collection[str]) -> list[tuple[str, nn.Parameter, str]]:
        """(name, parameter, rule) for every parameter; the rule is a built-in one's name or a pattern of the user's."""
        plan, problems = [], []
        has_residual = False
        for module_name, module, leaf, parameter in _owned_parameters(model):
            name = f"{module_name}.{leaf}" if module_name else leaf
            claims = self._claims(module_name, module, leaf)
            has_residual |= "residual" in claims
            if name in skip:
                continue
            claims = [pattern for pattern, (rule, _) in self.rules.items() if rule.fullmatch(name)] or claims
            if len(claims) == 1:
                plan.append((name, parameter, claims[0]))
            elif any(claim in self.rules for claim in claims):
                problems.append(
                    f"parameter {name} must match one of the rules, but matches {' and '.join(map(repr, claims))}; "
                    "make one of them narrower"
                )
            else:
                problems.append(
                    f"parameter {name} of {class_name(module)} is claimed by {' and '.join(claims) or 'no rule'}, "
                    "must be exactly one; add a pattern for it to ComposedInitializer.rules, say in its class "
                    f'`parameter_rules = {{"{leaf}": "embedding"}}` (or {", ".join(DECLARABLE[1:])}), or hold it in a '
                    "module that has a rule (Linear, Embedding, Conv, LayerNorm, RMSNorm, a class named *Norm)"
                )
        problems += self._unused_rules(model, skip)
        if self.weight_init_type != "plain" and not problems and not has_residual:
            problems.append(
                f"residual_outputs ({', '.join(self.residual_outputs)}) must name a matrix of {class_name(model)} "
                f"for weight_init_type ({self.weight_init_type!r}); name those that write to the residual stream, or "
                "set weight_init_type = 'plain'"
            )
        if problems:
            raise ConfigError(problems)
        return plan

    def _unused_rules(self, model: nn.Module, skip: Collection[str]) -> Iterator[str]:
        """A problem for each rule of the user that matches no parameter that is to be set here."""
        own = (f"{prefix}.{leaf}".lstrip(".") for prefix, _, leaf, _ in _owned_parameters(model))
        names = [name for name in own if name not in skip]
        for pattern, (rule, _) in self.rules.items():
            if not any(map(rule.fullmatch, names)):
                near = [name for name in names if rule.search(name)]
                near = near or difflib.get_close_matches(pattern.replace("\\", ""), names, n=3, cutoff=0.4) or names
                where = " that no other source sets" if skip else ""
                yield (
                    f"rules ({pattern!r}) must match the whole name of a parameter of {class_name(model)}"
                    f"{where}; names near it are {', '.join(near[:3])}"
                )

    def _stds(self, model: nn.Module) -> dict[str, float]:
        """The standard deviation of each rule that draws."""

        def size(name: str, given: int | None, reason: str) -> int:
            value = given if given is not None else getattr(model, name, None)
            if not isinstance(value, int):
                raise ConfigError(f"{name} (None) must be given for {reason}: {class_name(model)} has no {name}")
            return value

        std = math.sqrt(2 / (5 * size("dim", self.dim, "std ('auto')"))) if self.std == "auto" else float(self.std)
        stds = {"matrix": std, "embedding": std, "residual": std}
        if self.weight_init_type != "plain":
            layers = size("num_layers", self.num_layers, f"weight_init_type ({self.weight_init_type!r})")
            stds["residual"] = std / math.sqrt(2 * layers)
        if self.weight_init_type == "scaled_embed":
            stds["embedding"] = math.sqrt(0.4)
        return stds
