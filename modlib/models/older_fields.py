"""Fields of config.json by the names that transformers 4, and what builds on it, reads.

Version 5 keeps all that rotary positions need in `rope_parameters`, which version 4, and vLLM, llama.cpp and lm-eval
set-ups with it, ignore: they would take the default theta, without a word. With both, each reads its own.
"""

from __future__ import annotations

from typing import Any

_THETA = {"gpt_neox": "rotary_emb_base", "gpt_neox_japanese": "rotary_emb_base", "modernbert": "global_rope_theta"}
_LOCAL_THETA = {"modernbert": "local_rope_theta"}
_FRACTION = {"gpt_neox": "rotary_pct", "gpt_neox_japanese": "rotary_pct"}


def older_fields(config: Any) -> dict[str, Any]:
    """What version 4 needs to compute the same.

    Args:
        config: Of transformers 5.
    """
    fields: dict[str, Any] = {}
    rope = getattr(config, "rope_parameters", None) or {}
    kind = config.model_type
    if isinstance(rope.get("full_attention"), dict):  # one for each kind of layer: Gemma 3, ModernBERT
        local = rope.get("sliding_attention") or {}
        if "rope_theta" in local:
            fields[_LOCAL_THETA.get(kind, "rope_local_base_freq")] = local["rope_theta"]
        rope = rope["full_attention"]
    if "rope_theta" in rope:
        fields[_THETA.get(kind, "rope_theta")] = rope["rope_theta"]
        fields["rope_scaling"] = _scaling(rope)
    if "partial_rotary_factor" in rope:
        fields[_FRACTION.get(kind, "partial_rotary_factor")] = rope["partial_rotary_factor"]
    return fields


def _scaling(rope: dict[str, Any]) -> dict[str, Any] | None:
    if rope.get("rope_type", "default") == "default":
        return None
    return {name: value for name, value in rope.items() if name not in ("rope_theta", "partial_rotary_factor")}
