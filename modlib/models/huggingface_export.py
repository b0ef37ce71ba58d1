"""A model as a folder that transformers reads: config, weights, and what the folder it came from says beside them."""

from __future__ import annotations

import os
import secrets
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from modlib.models.base_folder import dtypes_of, keep_files, of_one_dtype
from modlib.models.export_check import check_folder, check_logits
from modlib.models.exportable import is_for_transformers, require_exportable
from modlib.models.exported_config import config_of, keep_told, write_config, write_generation_config
from modlib.models.exported_tensors import conversions, outputs, plain_conversions
from modlib.models.exported_tokenizer import DataTokenizer, adjust_kept, is_of_base, write_tokenizer
from modlib.models.gpt2 import GPT2
from modlib.models.huggingface_config import transformers_module
from modlib.models.lora import refuse_ties
from modlib.models.plain_types import plain_type, unwrapped
from modlib.models.safetensors_writer import Output, write_safetensors
from modlib.models.weight_names import architecture_of
from modlib.models.whole_weights import MergedWeights, ModelWeights, Weights
from modlib.runtime.errors import ConfigError

_CLASSES = {"gpt2": "GPT2LMHeadModel", "llama": "LlamaForCausalLM"}


def require_free(folder: Path) -> None:
    """Refuse to write where something is.

    Raises:
        ConfigError: The folder exists and is not empty, or is no folder.
    """
    if folder.is_dir() and not any(folder.iterdir()):
        return
    if folder.exists() or folder.is_symlink():
        raise ConfigError(f"OUT ({folder}) must be a new or empty folder; nothing is overwritten, so name another")


def export_huggingface(
    model: nn.Module,
    folder: Path,
    tokenizer: DataTokenizer | None = None,
    *,
    weights: Weights | None = None,
    dtype: str | None = None,
    plain: bool = False,
) -> None:
    """Write a model as a folder, all of it or nothing: config, safetensors, tokenizer, what its base folder says.

    Adapters are merged into the weights that are written; the model stays as it is. One tensor is in memory at a time,
    and before the folder gets its name it is compared with the run's model (`export_check`). Of a model that came from
    a folder, everything which that folder says and training did not change is kept. A user's own model is written as
    model.safetensors with its state, under its own names.

    Args:
        model: May be on meta where weights are given.
        folder: New or empty.
        tokenizer: That of the training data, or None.
        weights: Of the model with its adapters; None takes them from the model in memory.
        dtype: "float32", "bfloat16" or "float16"; None takes the base folder's, or else the model's own.
        plain: Write the state of a model as that of a user's own.

    Raises:
        ConfigError: The folder is not free, transformers has no architecture for the model, or the folder would compute
            something else.
    """
    model = unwrapped(model)
    require_free(folder)
    one_dtype = of_one_dtype(dtype)
    plain = plain or not is_for_transformers(model)
    if plain:
        refuse_ties(model)
    else:
        require_exportable(model)
    weights = ModelWeights(model) if weights is None else weights
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.tmp")
    aside.mkdir()
    try:
        if plain:
            write_safetensors(aside, outputs(model, plain_conversions(model), MergedWeights(weights, model), one_dtype))
            if tokenizer is not None and tokenizer.json is not None:
                write_tokenizer(aside, tokenizer, getattr(model, "seq_len", None))
        else:
            _write(aside, model, tokenizer, weights, dtype)
        weights.finish()
        require_free(folder)
        os.rename(aside, folder)  # takes the place of an empty folder, and of nothing else
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _write(folder: Path, model: Any, tokenizer: DataTokenizer | None, weights: Weights, dtype: str | None) -> None:
    base: Path | None = getattr(model, "base_folder", None)
    dtype_of = of_one_dtype(dtype) if base is None else dtypes_of(base, dtype)
    written = outputs(model, conversions(model), MergedWeights(weights, model), dtype_of)
    if base is not None:
        kept = is_of_base(base, tokenizer)
        keep_files(base, folder, tokenizer=kept)
    else:
        kept = False
    of_data = tokenizer is not None and (base is None or (not kept and tokenizer.json is not None))
    ids = [token and token.id for token in tokenizer.boundaries] if tokenizer is not None and of_data else [None, None]
    config = config_of(model, begin_id=ids[1], end_id=ids[0])
    if base is not None and isinstance(model, GPT2):
        keep_told(config, base, ids=not of_data)
    kind: Any = (
        getattr(transformers_module(), _CLASSES[architecture_of(model)])
        if isinstance(model, GPT2)
        else plain_type(model.network)
    )
    write_config(folder, config, kind, _most(written), base)
    if kind.can_generate():
        write_generation_config(folder, config, of_data=of_data)
    check_folder(folder, model, config, kind, written)
    write_safetensors(folder, written)
    if kept:
        adjust_kept(folder, tokenizer)
    elif tokenizer is not None and tokenizer.json is not None:
        write_tokenizer(folder, tokenizer, int(model.seq_len))
    check_logits(folder, model, weights, kind, written)


def _most(written: Sequence[Output]) -> torch.dtype:
    """The dtype of most of the values of floating point, which is the folder's."""
    values: Counter[torch.dtype] = Counter()
    for output in written:
        if output.dtype.is_floating_point:
            values[output.dtype] += output.num_bytes // output.dtype.itemsize
    return values.most_common(1)[0][0] if values else torch.float32
