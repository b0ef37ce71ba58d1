"""Which GPT2 is a transformers config? Its arguments, or why there are none."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import nn

from modlib.runtime.errors import ConfigError

# What the best known of the other architectures compute that GPT2 does not, or export cannot write.
_LACKING = {
    "gemma": "norms times 1 + weight, and embeddings times the root of their size",
    "gemma2": "norms times 1 + weight, capped logits and sliding windows",
    "gemma3_text": "norms times 1 + weight and sliding windows",
    "gpt_neox": "its order of queries, keys and values",
    "mixtral": "mixtures of experts",
    "olmo": "norms without weights and clipped projections",
    "olmo2": "norms after each branch",
    "phi": "a parallel residual with one norm",
    "qwen2": "biases on queries, keys and values alone",
    "qwen3": "norms of queries and keys",
    "qwen3_moe": "mixtures of experts",
}


def arguments_from_transformers(config: Mapping[str, Any]) -> dict[str, Any]:
    """GPT2's arguments for a transformers config of GPT-2, Llama, or Mistral without its window.

    Args:
        config: All fields with their defaults, as `to_dict` of a config gives them.

    Raises:
        ConfigError: Another model_type, or a setting that GPT2 cannot express; all of them are named.
    """
    kind = config.get("model_type")
    if kind == "gpt2":
        return _gpt2_arguments(config)
    if kind in ("llama", "mistral"):
        return _llama_arguments(config)
    lacking = f"; GPT2 has no {_LACKING[kind]}" if kind in _LACKING else ""
    raise ConfigError([f"model_type ({kind!r}) must be 'gpt2', 'llama' or 'mistral'{lacking}", *_problems(config)])


def _problems(config: Mapping[str, Any]) -> list[str]:
    """Fields of any architecture that GPT2 cannot express, a sentence each."""
    heads, dim = config.get("num_attention_heads"), config.get("hidden_size")
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    needed = {
        "rope_type": "default",
        "partial_rotary_factor": 1.0,
        "head_dim": dim // heads if isinstance(dim, int) and isinstance(heads, int) and heads else None,
        "attention_bias": False,
        "mlp_bias": False,
        "hidden_act": "silu",
        "attention_dropout": 0.0,
        "use_parallel_residual": False,
        "parallel_attn": False,
        "sliding_window": None,
    }
    rope_type = rope.get("rope_type", rope.get("type", "default"))
    told = {"partial_rotary_factor": rope.get("partial_rotary_factor", 1.0), **config, "rope_type": rope_type}
    return _unlike(told, needed)


def _unlike(config: Mapping[str, Any], needed: Mapping[str, Any]) -> list[str]:
    return [
        f"{name} ({config[name]!r}) must be {value!r} to be expressed as GPT2"
        for name, value in needed.items()
        if config.get(name) is not None and config[name] != value
    ]


def _refuse(problems: list[str]) -> None:
    if problems:
        raise ConfigError(problems)


def _gpt2_arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    activations = {"gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu": "gelu", "relu": "relu"}
    name = config.get("activation_function", "gelu_new")
    needed = {"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False, "add_cross_attention": False}
    problems = _unlike(config, needed)
    if name not in activations:
        problems.append(f"activation_function ({name!r}) must be one of {', '.join(map(repr, activations))}")
    drops = {config.get(key, 0.1) for key in ("embd_pdrop", "attn_pdrop", "resid_pdrop")}
    if len(drops) > 1:
        problems.append(f"embd_pdrop, attn_pdrop and resid_pdrop ({sorted(drops)}) must be equal to be GPT2.dropout")
    _refuse(problems)
    return {
        "vocab_size": config["vocab_size"],
        "seq_len": config["n_positions"],
        "num_layers": config["n_layer"],
        "num_heads": config["n_head"],
        "dim": config["n_embd"],
        "ffn_dim": config.get("n_inner"),
        "activation": activations[name],
        "norm": partial(nn.LayerNorm, eps=config.get("layer_norm_epsilon", 1e-5)),
        "tie_embeddings": config.get("tie_word_embeddings", True),
        "dropout": drops.pop(),
    }


def _llama_arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    _refuse(_problems(config))
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    heads, dim = config["num_attention_heads"], config["hidden_size"]
    return {
        "vocab_size": config["vocab_size"],
        "seq_len": config["max_position_embeddings"],
        "num_layers": config["num_hidden_layers"],
        "num_heads": heads,
        "num_kv_heads": config.get("num_key_value_heads") or heads,
        "dim": dim,
        "ffn_dim": config["intermediate_size"],
        "activation": "swiglu",
        "norm": partial(nn.RMSNorm, eps=config.get("rms_norm_eps", 1e-6)),
        "position": "rotary",
        "rope_theta": float(rope.get("rope_theta", config.get("rope_theta", 10000.0))),
        "bias": False,
        "tie_embeddings": config.get("tie_word_embeddings", False),
    }
