"""What a parameter is for: the matrix of a linear map, an embedding, a bias, ... and so who updates it, and how."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

Role = Literal[
    "matrix",
    "experts",
    "embedding",
    "output",
    "router",
    "convolution",
    "depthwise_convolution",
    "bias",
    "vector",
    "state_space",
    "table",
]
"""
- matrix: the weight of a linear map, or one of its low-rank factors;
- experts: matrices of several experts in one parameter, the experts along its first axis;
- embedding: a table that ids look up, tied to the output or not;
- output: the matrix that makes logits, where it is one of its own;
- router: the matrix that scores experts, or the gate of a shared one;
- convolution, depthwise_convolution: the latter has one small filter per channel and mixes none;
- bias: of one layer, or of several experts in one parameter;
- vector: gains of norms, and whatever else has one axis larger than 1;
- state_space: A_log, D and dt_bias of Mamba-like layers;
- table: all else, such as position embeddings that are no nn.Embedding.
"""

DECAYED: tuple[Role, ...] = ("matrix", "experts", "embedding", "output", "router", "convolution", "table")
"""Roles that weight decay is for."""

_OUTPUTS = ("lm_head", "embed_out", "unembed", "unembedding", "output_projection", "to_logits", "head", "output")
_GATES = ("gate", "router", "gating", "wg")
_MARK, _MARKED = "_no_weight_decay", "marked_no_weight_decay"


def parameter_roles(model: nn.Module) -> dict[str, Role]:
    """The role of every parameter, by the name that named_parameters gives it.

    Args:
        model: Plain or sharded by FSDP2, on meta or in memory; shapes are those of the whole parameter.
    """
    modules = dict(model.named_modules())
    embeddings = {
        id(module.weight) for module in modules.values() if isinstance(module, nn.Embedding | nn.EmbeddingBag)
    }
    output = _output(model, modules)
    roles: dict[str, Role] = {}
    for name, parameter in model.named_parameters():
        path, _, leaf = name.rpartition(".")
        if id(parameter) in embeddings:
            roles[name] = "embedding"
        elif output is not None and modules[path] is output and parameter.ndim == 2:
            roles[name] = "output"
        else:
            roles[name] = role_of(parameter, leaf, modules[path], _is_router(path, modules))
    return roles


def role_of(parameter: Tensor, leaf: str = "weight", module: nn.Module | None = None, in_router: bool = False) -> Role:
    """The role of one parameter, from its layer, its name in it, and where these do not say, its shape.

    Tied embeddings, and which layer makes the logits, are seen in the whole model only: see `parameter_roles`.

    Args:
        parameter: Any shape.
        leaf: Its name in the layer that holds it.
        module: That layer; None when it is not known.
        in_router: Whether that layer scores experts.
    """
    if leaf in ("A_log", "dt_bias") or (leaf == "D" and hasattr(module, "A_log")):
        return "state_space"
    if leaf.endswith("bias"):
        return "bias"
    is_vector = sum(size > 1 for size in parameter.shape) <= 1
    if isinstance(module, nn.Embedding | nn.EmbeddingBag):
        return "embedding"
    if isinstance(module, _ConvNd):
        depthwise = leaf == "weight" and 1 < module.in_channels == module.groups
        return "depthwise_convolution" if depthwise else "vector" if parameter.ndim < 3 else "convolution"
    if in_router and parameter.ndim == 2:
        return "router"
    kind = type(module).__name__
    if leaf in ("lora_A", "lora_B") or (isinstance(module, nn.Linear) and leaf == "weight"):
        return "matrix"
    if is_vector or kind.endswith("Norm"):
        return "vector"
    if parameter.ndim == 3 and "Expert" in kind:
        return "experts"
    is_weight = "weight" in leaf or leaf.endswith(("proj", "kernel")) or leaf.startswith("original")
    return "matrix" if parameter.ndim == 2 and is_weight and "Expert" not in kind else "table"


def decays(model: nn.Module) -> set[str]:
    """Names of the parameters that weight decay is for, by their role and their author's `_no_weight_decay`."""
    marked = set(_marked(model))
    return {name for name, role in parameter_roles(model).items() if role in DECAYED and name not in marked}


def num_non_embedding(model: nn.Module) -> int:
    """Parameters that are neither embeddings nor the output matrix, tied or not: N of papers on scaling.

    Source: Kaplan et al. 2020, Scaling Laws for Neural Language Models, section 2.1.
    """
    roles = parameter_roles(model)
    return sum(p.numel() for name, p in model.named_parameters() if roles[name] not in ("embedding", "output"))


def keep_marks(model: nn.Module) -> None:
    """Write down in each layer which of its parameters are marked `_no_weight_decay`.

    The mark is an attribute of the parameter, and a parameter is another object once it has memory or is sharded.
    """
    for module in model.modules():
        marked = {leaf for leaf, p in module.named_parameters(recurse=False) if getattr(p, _MARK, False)}
        if marked:
            setattr(module, _MARKED, marked | getattr(module, _MARKED, set()))


def _marked(model: nn.Module) -> Iterator[str]:
    for path, module in model.named_modules():
        for leaf, parameter in module.named_parameters(recurse=False):
            if getattr(parameter, _MARK, False) or leaf in getattr(module, _MARKED, ()):
                yield f"{path}.{leaf}".lstrip(".")


def _output(model: nn.Module, modules: dict[str, nn.Module]) -> nn.Module | None:
    """The layer whose matrix makes the logits; None where it is not found, or is the embedding itself."""
    finders = [find for module in modules.values() if callable(find := getattr(module, "get_output_embeddings", None))]
    if finders:  # models of transformers
        return next((found for find in finders if isinstance(found := find(), nn.Module)), None)
    if hasattr(model, "lm_head"):
        return model.lm_head if isinstance(model.lm_head, nn.Module) else None
    vocab_size = getattr(model, "vocab_size", None)
    linear = {path: module for path, module in modules.items() if isinstance(module, nn.Linear)}
    rows = {path for path, module in linear.items() if module.weight.shape[0] == vocab_size}
    last = next(reversed(linear), "")
    chosen = [path for path in rows if path == last or path.rpartition(".")[2] in _OUTPUTS]
    return linear[chosen[0]] if chosen else None


def _is_router(path: str, modules: dict[str, nn.Module]) -> bool:
    """Whether a layer scores experts, by its name or class, or as a gate beside experts."""
    parent, _, name = path.rpartition(".")
    if "router" in path.lower().split(".") or "router" in type(modules[path]).__name__.lower():
        return True
    if name not in _GATES and not name.endswith("expert_gate"):
        return False
    siblings = [*modules[parent].named_children(), *modules[parent].named_parameters(recurse=False)]
    return any("expert" in sibling.lower() for sibling, _ in siblings if sibling != name)
