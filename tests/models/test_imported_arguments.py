"""Configs that GPT2 can express give its arguments; of the others every field in the way is named."""

from __future__ import annotations

from typing import Any

import pytest

from modlib.models.imported_arguments import arguments_from_transformers
from modlib.runtime.errors import ConfigError

transformers = pytest.importorskip("transformers")
SIZES = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 1}


def config(model_type: str, **fields: Any) -> dict[str, Any]:
    given = fields if model_type == "gpt2" else {**SIZES, **fields}
    result: dict[str, Any] = transformers.AutoConfig.for_model(model_type, **given).to_dict()
    return result


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (
            config("bert", num_key_value_heads=None),
            "model_type ('bert') must be 'gpt2', 'llama' or 'mistral'\n"
            "hidden_act ('gelu') must be 'silu' to be expressed as GPT2",
        ),
        (
            config("gpt2", scale_attn_by_inverse_layer_idx=True, activation_function="swish", attn_pdrop=0.2),
            "scale_attn_by_inverse_layer_idx (True) must be False to be expressed as GPT2\n"
            "activation_function ('swish') must be one of 'gelu_new', 'gelu_pytorch_tanh', 'gelu', 'relu'\n"
            "embd_pdrop, attn_pdrop and resid_pdrop ([0.1, 0.2]) must be equal to be GPT2.dropout",
        ),
        (
            config("llama", head_dim=32, rope_parameters={
                "rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0,
                "high_freq_factor": 4.0, "original_max_position_embeddings": 512,
            }),
            "rope_type ('llama3') must be 'default' to be expressed as GPT2\n"
            "head_dim (32) must be 16 to be expressed as GPT2",
        ),
        (
            config("qwen3", head_dim=128),
            "model_type ('qwen3') must be 'gpt2', 'llama' or 'mistral'; GPT2 has no norms of queries and keys\n"
            "head_dim (128) must be 16 to be expressed as GPT2",
        ),
        (
            config("gpt_neox", num_key_value_heads=None),
            "use_parallel_residual (True) must be False to be expressed as GPT2",
        ),
        (config("mistral", sliding_window=4096), "sliding_window (4096) must be None to be expressed as GPT2"),
    ],
    ids=["bert", "gpt2", "llama", "qwen3", "gpt_neox", "mistral"],
)  # fmt: skip
def test_what_cannot_be_expressed_is_refused_with_each_field(given: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        arguments_from_transformers(given)
    assert set(text.splitlines()) <= set(str(caught.value).splitlines())
    if given["model_type"] != "gpt_neox":
        assert str(caught.value) == text


def test_mistral_without_its_window_is_a_llama() -> None:
    found = arguments_from_transformers(config("mistral", sliding_window=None, rms_norm_eps=1e-4))
    expected = arguments_from_transformers(
        config("llama", rms_norm_eps=1e-4, intermediate_size=14336, max_position_embeddings=4096 * 32)
    )
    assert found.pop("norm").keywords == expected.pop("norm").keywords == {"eps": 1e-4}
    assert found == expected
