"""What a token costs in a model of transformers, read from its config and the shapes of its parameters."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from torch import nn

from modlib.optim.roles import parameter_roles

_USED_EXPERTS = ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k", "num_selected_experts")
_FFN_DIMS = ("intermediate_size", "n_inner", "ffn_dim")


def used_experts(config: Any) -> int | None:
    """How many experts a token uses; None where the config does not say."""
    return _first(config, _USED_EXPERTS)


def multiplied(network: nn.Module, config: Any) -> dict[str, float]:
    """Name of each parameter that activations are multiplied with -> multiply-adds per token.

    Tables that are only looked up are left out; of experts, those count that a token uses.
    """
    output = network.get_output_embeddings()  # type: ignore[operator]
    kept = {id(parameter) for parameter in output.parameters()} if output is not None else set()
    tables = {id(module.weight) for module in network.modules() if isinstance(module, nn.Embedding)} - kept
    roles, used = parameter_roles(network), used_experts(config)
    counts: dict[str, float] = {}
    for name, parameter in network.named_parameters():
        if id(parameter) not in tables:
            counts[name] = float(parameter.numel())
            if _is_of_experts(name, roles[name]) and used:
                counts[name] *= min(1.0, used / _num_experts(parameter, config))
    return counts


def attention_dim(config: Any, dim: int) -> float:
    """Query heads times head_dim, of queries and values on average where these differ, as in DeepSeek's."""
    heads = getattr(config, "num_attention_heads", None)
    values = getattr(config, "v_head_dim", None)
    parts = [getattr(config, name, None) for name in ("qk_nope_head_dim", "qk_rope_head_dim")]
    queries = sum(part for part in parts if part) or getattr(config, "head_dim", None)
    if not heads or not queries:
        return float(dim)
    return heads * (queries + (values or queries)) / 2


@dataclass(frozen=True)
class FeedForwards:
    """What a token meets in the feed-forward of all layers together.

    Args:
        hidden: Hidden values, of experts those that a token uses, and of the shared ones.
        gated: Whether a gate is multiplied in, which doubles what is kept.
        copies: Times that a token is copied to an expert.
    """

    hidden: int
    gated: bool
    copies: int


def feed_forwards(network: nn.Module, config: Any, num_layers: int, dim: int) -> FeedForwards:
    """See FeedForwards.

    Args:
        network: The model of transformers.
        config: Its text config.
        num_layers: Number of blocks.
        dim: Size of the residual stream.
    """
    names = [name for name, _ in network.named_parameters()]
    dense = int(_first(config, _FFN_DIMS) or 4 * dim)
    gated = any(part in name for name in names for part in ("gate_proj", "gate_up_proj"))
    used = used_experts(config) or 0
    own = int(getattr(config, "moe_intermediate_size", None) or dense)
    shared = int(getattr(config, "shared_expert_intermediate_size", None) or 0)
    shared += own * int(_first(config, ("n_shared_experts", "num_shared_experts")) or 0)
    mixtures = len({found.group(1) for name in names if (found := re.match(r"(.*?\.\d+)\..*\bexperts\.", name))})
    hidden = mixtures * (used * own + shared) + (num_layers - mixtures) * dense
    return FeedForwards(hidden, gated, mixtures * used)


def _is_of_experts(name: str, role: str) -> bool:
    return role == "experts" or ".experts." in name


def _num_experts(parameter: nn.Parameter, config: Any) -> int:
    if parameter.ndim == 3:
        return int(parameter.shape[0])
    names = ("num_local_experts", "num_experts", "n_routed_experts")
    return int(_first(config, names) or parameter.shape[0])


def _first(config: Any, names: tuple[str, ...]) -> Any:
    return next((value for name in names if (value := getattr(config, name, None))), None)
