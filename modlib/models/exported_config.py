"""config.json and generation_config.json of an exported model, for transformers 5 and for readers of version 4."""

from __future__ import annotations

import copy
import json
import logging
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from modlib.models.base_folder import base_config
from modlib.models.gpt2 import GPT2
from modlib.models.huggingface import HuggingFacePretrainedModel
from modlib.models.huggingface_config import transformers_module
from modlib.models.older_fields import older_fields
from modlib.models.weight_names import architecture_of
from modlib.runtime.json_files import read_json

logger = logging.getLogger("modlib")

_ACTIVATIONS = {"gelu": "gelu", "gelu_tanh": "gelu_new", "relu": "relu"}
_OF_A_FILE = ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "architectures", "_attn_implementation")


def config_of(model: GPT2 | HuggingFacePretrainedModel, begin_id: int | None, end_id: int | None) -> Any:
    """The transformers config of what is written; its own object.

    Args:
        model: May be on meta.
        begin_id: Id of the token that a text begins with.
        end_id: Of the token that ends a document; None leaves what the model's config says, as for one that came from
            a folder with a tokenizer of its own.

    Raises:
        ConfigError: transformers has no such architecture.
    """
    if isinstance(model, GPT2):
        config = transformers_config(model)
    else:
        network: Any = model.network
        config = copy.deepcopy(network.config)
    if end_id is not None:
        config.eos_token_id, config.bos_token_id = end_id, begin_id
    return config


def keep_told(config: Any, base: Path, *, ids: bool) -> None:
    """Take over what the folder that a GPT2 was imported from says, and the model does not.

    Args:
        config: Of the model.
        base: The folder.
        ids: Whether its tokenizer is kept, whose special tokens are named in it.
    """
    told = base_config(base)
    for name in ("initializer_range", *(("bos_token_id", "eos_token_id", "pad_token_id") if ids else ())):
        if name in told:
            setattr(config, name, told[name])


def write_config(folder: Path, config: Any, kind: type[Any], dtype: torch.dtype, base: Path | None) -> None:
    """Write config.json, in the words of the base's where there is one, with the fields that version 4 reads.

    Of several texts the first is taken that version 5 reads as exactly this config.

    Args:
        folder: Is there.
        config: Of transformers.
        kind: The model's class in transformers.
        dtype: Of its weights.
        base: The folder that was trained from.
    """
    named = str(dtype).removeprefix("torch.")
    config.dtype, config.architectures = named, [kind.__name__]
    with tempfile.TemporaryDirectory() as place:
        config.save_pretrained(place)
        own = read_json(Path(place) / "config.json", dict[str, Any])
    own["torch_dtype"] = named
    new: dict[str, Any] = {"dtype": named, "torch_dtype": named, "architectures": [kind.__name__]}
    older = _older(config, own)
    rope: dict[str, Any] = {name: own[name] for name in ("rope_parameters", "text_config") if name in own}
    told = {} if base is None else base_config(base)
    candidates: list[dict[str, Any]] = [{**told, **_changed(told, own), **rope, **older, **new}] if told else []
    candidates += [{**own, **older}, own]
    for content in candidates:
        text = json.dumps(content, indent=2, sort_keys=True)
        (folder / "config.json").write_text(text + "\n", encoding="utf-8")
        if _reads_the_same(folder, config):
            if content is own and older:
                logger.warning(
                    "config.json of %s has the rotary positions as transformers 5 reads them only; readers of version "
                    "4 may compute something else", folder.name,
                )  # fmt: skip
            return


def _older(config: Any, own: Mapping[str, Any]) -> dict[str, Any]:
    """The older fields; those of the language model in a config of several models within its own part."""
    text = getattr(config, "text_config", None)
    if text is None or not isinstance(own.get("text_config"), dict):
        return older_fields(config)
    return {**older_fields(config), "text_config": {**own["text_config"], **older_fields(text)}}


def _changed(told: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Fields that the base's file has, and that an override gave another value."""
    kept = (*_OF_A_FILE, "rope_parameters", "rope_scaling", "rope_theta")
    return {name: value for name, value in own.items() if name in told and name not in kept and value != told[name]}


def _reads_the_same(folder: Path, config: Any) -> bool:
    try:
        found = transformers_module().AutoConfig.from_pretrained(str(folder), local_files_only=True).to_dict()
    except Exception:  # each config class checks in its own way
        return False
    return all(found.get(name) == value for name, value in config.to_dict().items() if name not in _OF_A_FILE)


def write_generation_config(folder: Path, config: Any, *, of_data: bool) -> None:
    """Write how to generate, as far as the config says it; what a base folder said stays.

    Args:
        folder: Where the base's file is already, if it has one.
        config: Of transformers.
        of_data: Whether the ids in it are the training data's, which then replace those of the base's file.
    """
    file = folder / "generation_config.json"
    if not file.exists():
        transformers_module().GenerationConfig.from_model_config(config).save_pretrained(str(folder))
    elif of_data and config.eos_token_id is not None:
        told = read_json(file, dict[str, Any])
        told |= {"eos_token_id": config.eos_token_id, "bos_token_id": config.bos_token_id}
        file.write_text(json.dumps(told, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def transformers_config(model: GPT2) -> Any:
    """The transformers config of the architecture that computes the same as this model.

    Args:
        model: GPT-2 or Llama by its parameters.

    Raises:
        ConfigError: There is none, as architecture_of says.
    """
    architecture = architecture_of(model)
    library = transformers_module()
    eps = getattr(model.final_norm, "eps", None)
    shared = {
        "vocab_size": model.vocab_size,
        "bos_token_id": None,
        "eos_token_id": None,
        "tie_word_embeddings": model.tie_embeddings,
        "architectures": None,
    }
    if architecture == "gpt2":
        return library.GPT2Config(
            n_positions=model.seq_len,
            n_embd=model.dim,
            n_layer=model.num_layers,
            n_head=model.num_heads,
            n_inner=model.ffn_dim,
            activation_function=_ACTIVATIONS[model.activation],
            resid_pdrop=model.dropout,
            embd_pdrop=model.dropout,
            attn_pdrop=model.dropout,
            layer_norm_epsilon=eps,
            **shared,
        )
    return library.LlamaConfig(
        max_position_embeddings=model.seq_len,
        hidden_size=model.dim,
        intermediate_size=model.ffn_dim,
        num_hidden_layers=model.num_layers,
        num_attention_heads=model.num_heads,
        num_key_value_heads=model.num_kv_heads,
        head_dim=model.head_dim,
        hidden_act="silu",
        rms_norm_eps=torch.finfo(torch.float32).eps if eps is None else eps,  # what torch takes for None
        rope_parameters={"rope_type": "default", "rope_theta": float(model.rope_theta)},
        **shared,
    )
