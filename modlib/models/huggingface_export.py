"""A model as a folder that transformers reads: config, weights, and the tokenizer where there is one."""

from __future__ import annotations

import copy
import os
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from modlib.models.gpt2 import GPT2
from modlib.models.huggingface import PREFIX, HuggingFacePretrainedModel
from modlib.models.huggingface_config import transformers_module
from modlib.models.weight_names import architecture_of, to_transformers
from modlib.models.weights import named_state
from modlib.runtime.errors import ConfigError

_ACTIVATIONS = {"gelu": "gelu", "gelu_tanh": "gelu_new", "relu": "relu"}


def require_free(folder: Path) -> None:
    """Refuse to write where something is.

    Raises:
        ConfigError: The folder exists and is not empty, or is no folder.
    """
    if folder.is_dir() and not any(folder.iterdir()):
        return
    if folder.exists() or folder.is_symlink():
        raise ConfigError(f"OUT ({folder}) must be a new or empty folder; nothing is overwritten, so name another")


def export_huggingface(model: nn.Module, folder: Path, tokenizer: Any = None, end_token: str | None = None) -> None:
    """Write config.json, model.safetensors, and what else transformers wants, all of it or nothing.

    Adapters are merged into the weights that are written; the model stays as it is.

    Args:
        model: GPT2 or HuggingFacePretrainedModel, whole on this process.
        folder: New or empty.
        tokenizer: A tokenizers.Tokenizer to put beside it, or None.
        end_token: Its token that ends a document, or None.

    Raises:
        ConfigError: The folder is not free, or transformers has no architecture for the model.
    """
    require_free(folder)
    network = _network(model, None if end_token is None else tokenizer.token_to_id(end_token))
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.tmp")
    try:
        network.save_pretrained(str(aside))
        if tokenizer is not None:
            seq_len = int(model.seq_len)  # type: ignore[arg-type]
            _tokenizer(tokenizer, end_token, seq_len).save_pretrained(str(aside))
        for file in aside.iterdir():
            file.chmod((aside / "config.json").stat().st_mode)  # weights are written for their owner alone
        require_free(folder)
        os.rename(aside, folder)  # takes the place of an empty folder, and of nothing else
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _tokenizer(tokenizer: Any, end_token: str | None, seq_len: int) -> Any:
    marks = {} if end_token is None else {"bos_token": end_token, "eos_token": end_token}
    return transformers_module().PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=seq_len, **marks)


def _network(model: nn.Module, end_id: int | None) -> Any:
    """A transformers model with these weights, its own object."""
    state = _plain_state(model)
    if isinstance(model, GPT2):
        network = _empty(transformers_module().AutoModelForCausalLM.from_config, transformers_config(model, end_id))
        return _loaded(network, to_transformers(state, model))
    if isinstance(model, HuggingFacePretrainedModel):
        inner: Any = model.network
        config = copy.deepcopy(inner.config)
        if not model.is_pretrained and end_id is not None:  # else they are the architecture's, of another tokenizer
            config.bos_token_id = config.eos_token_id = end_id
        network = _empty(type(inner), config)
        if model.is_pretrained and getattr(inner, "generation_config", None) is not None:
            network.generation_config = inner.generation_config
        return _loaded(network, {name.removeprefix(PREFIX): tensor for name, tensor in state.items()})
    raise ConfigError(
        f"model ({type(model).__name__}) must be GPT2 or HuggingFacePretrainedModel to be written for transformers"
    )


def _plain_state(model: nn.Module) -> Mapping[str, Tensor]:
    """The weights by the names they have without adapters, which are merged in."""
    state = named_state(model)
    if any("lora" in name for name in state):
        from modlib.models.lora import merged_state_dict

        return merged_state_dict(model)
    return state


def _empty(build: Any, config: Any) -> Any:
    with torch.device("meta"):
        return build(config)


def _loaded(network: Any, state: Mapping[str, Tensor]) -> Any:
    """The network with these tensors as its weights, none of them copied."""
    plain = {name: tensor.detach().cpu() for name, tensor in state.items()}
    result = network.load_state_dict(plain, strict=False, assign=True)
    network.tie_weights()
    missing = [name for name in result.missing_keys if name not in network.all_tied_weights_keys]
    if missing or result.unexpected_keys:
        raise ConfigError(
            [f"weight {name} of {type(network).__name__} must be set; the run's model lacks it" for name in missing]
            + [f"weight {name} must be one of {type(network).__name__}" for name in result.unexpected_keys]
        )
    return network


def transformers_config(model: GPT2, end_id: int | None = None) -> Any:
    """The transformers config of the architecture that computes the same as this model.

    Args:
        model: GPT-2 or Llama by its parameters.
        end_id: Id of the token that begins and ends documents, or None.

    Raises:
        ConfigError: There is none, as architecture_of says.
    """
    library = transformers_module()
    eps = getattr(model.final_norm, "eps", None)
    shared = {
        "vocab_size": model.vocab_size,
        "bos_token_id": end_id,
        "eos_token_id": end_id,
        "tie_word_embeddings": model.tie_embeddings,
        "architectures": None,
    }
    if architecture_of(model) == "gpt2":
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
