"""A folder of transformers as a model of modlib's own: its gin lines, a checkpoint, and the tokenizer's files."""

from __future__ import annotations

import inspect
import json
import math
import os
import secrets
import shutil
import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from modlib.checkpointing.raw_writer import bytes_of
from modlib.checkpointing.streamed import StreamedTensor, save_streamed
from modlib.models.base_folder import base_config, keep_files
from modlib.models.gpt2 import GPT2
from modlib.models.huggingface_config import read_config
from modlib.models.huggingface_export import require_free
from modlib.models.imported_arguments import arguments_from_transformers
from modlib.models.safetensors_reader import SafetensorsFolder, StoredWeight
from modlib.models.weight_names import PartFromTransformers, parts_from_transformers
from modlib.runtime.errors import CheckpointError, ConfigError

MOST_CONVERTED_BYTES = 128 << 20
"""Of all threads together, what they hold of tensors that have to be whole to be rearranged, unless one is larger."""


@dataclass(frozen=True)
class Imported:
    """What was imported: the model, on meta, and the bytes of its checkpoint."""

    model: GPT2
    num_bytes: int


def import_huggingface(folder: Path, out: Path) -> Imported:
    """Write a folder with model.gin, a checkpoint, and all files of the given one but its weights; all or nothing.

    Tensors are read while they are written, so memory holds a few pieces of them, and those that are rearranged.

    Args:
        folder: As `save_pretrained` writes it, of GPT-2, Llama, or Mistral without its window; weights in safetensors.
        out: New or empty.

    Raises:
        ConfigError: `out` is not free, or GPT2 cannot express the folder's config; every field concerned is named.
        CheckpointError: Weights are missing, left over, damaged, of another shape or no floating point numbers.
        NonFiniteError: They hold NaN or Inf.
    """
    require_free(out)
    arguments = _arguments(folder)
    with torch.device("meta"):
        model = GPT2(**arguments)
    out.parent.mkdir(parents=True, exist_ok=True)
    aside = out.with_name(f".{out.name}.{secrets.token_hex(4)}.tmp")
    with SafetensorsFolder(folder) as stored:
        parts = parts_from_transformers({name: weight.shape for name, weight in stored.weights.items()}, model)
        _require_floats([stored.weights[name] for part in parts for name in part.theirs])
        try:
            aside.mkdir()
            keep_files(folder, aside, tokenizer=True)
            _write_config(folder, aside, stored.weights)
            (aside / "model.gin").write_text(model_gin(arguments, folder, out), encoding="utf-8")
            saved = save_streamed(
                aside / "checkpoints",
                step=0,
                tensors=[_streamed(part, stored.weights) for part in parts],
                info={"imported": str(folder)},
                most_threads=_most_threads(parts),
            )
            require_free(out)
            os.rename(aside, out)  # takes the place of an empty folder, and of nothing else
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    return Imported(model, saved.bytes)


def _arguments(folder: Path) -> dict[str, Any]:
    config = read_config(str(folder), None, {}, "eager")
    try:
        return arguments_from_transformers(config.to_dict())
    except ConfigError as error:
        remedy = f"train the folder as it is: HuggingFacePretrainedModel.path = '{folder}' (models/huggingface.gin)"
        raise ConfigError([*error.problems[:-1], f"{error.problems[-1]}; {remedy}"]) from error


def _require_floats(weights: list[StoredWeight]) -> None:
    for weight in weights:
        if not weight.dtype.is_floating_point or weight.dtype.itemsize < 2:
            kind = str(weight.dtype).removeprefix("torch.")
            raise CheckpointError(
                f"weights in {weight.path} ({kind}) must be float32, bfloat16 or float16; take the folder that is not "
                "quantized"
            )


def _streamed(part: PartFromTransformers, weights: Mapping[str, StoredWeight]) -> StreamedTensor:
    """One of ours, float32 as the parameters of GPT2 are: read in place where the order of values is the same."""
    sources = [weights[name] for name in part.theirs]
    if part.is_same:
        read: Any = partial(_read_values, sources[0])
    else:
        read = _Converted(part, sources).read
    return StreamedTensor(part.ours, part.shape, torch.float32, read)


def _read_values(weight: StoredWeight, begin: int, end: int) -> np.ndarray:
    width = torch.float32.itemsize
    return bytes_of(weight.values(begin // width, end // width).float())


class _Converted:
    """A tensor that is made of whole ones; each thread makes it once and keeps it until it is at its next one."""

    _held = threading.local()

    def __init__(self, part: PartFromTransformers, sources: list[StoredWeight]) -> None:
        self._part, self._sources = part, sources

    def read(self, begin: int, end: int) -> np.ndarray:
        """These bytes of it."""
        held: tuple[_Converted, Tensor] | None = getattr(self._held, "tensor", None)
        if held is None or held[0] is not self:
            self._held.tensor = held = None  # make room first
            made = self._part.convert([source.whole() for source in self._sources])
            held = (self, made)
            self._held.tensor = held
        width = torch.float32.itemsize
        return bytes_of(held[1].view(-1)[begin // width : end // width].float())


def _most_threads(parts: list[PartFromTransformers]) -> int:
    """As many as may each hold the largest tensor that has to be whole."""
    largest = max((math.prod(part.shape) * 4 for part in parts if not part.is_same), default=1)
    return max(1, MOST_CONVERTED_BYTES // (2 * largest))


def _write_config(folder: Path, out: Path, weights: Mapping[str, StoredWeight]) -> None:
    """Its config.json, byte by byte where it names the dtype that the weights have, which is that of an export."""
    values: Counter[torch.dtype] = Counter()
    for weight in weights.values():
        values[weight.dtype] += math.prod(weight.shape)
    dtype = str(values.most_common(1)[0][0]).removeprefix("torch.")
    told = base_config(folder)
    if str(told.get("dtype", told.get("torch_dtype"))).removeprefix("torch.") == dtype:
        shutil.copyfile(folder / "config.json", out / "config.json")
    else:
        text = json.dumps({**told, "dtype": dtype, "torch_dtype": dtype}, indent=2, sort_keys=True)
        (out / "config.json").write_text(text + "\n", encoding="utf-8")


def model_gin(arguments: Mapping[str, Any], folder: Path, out: Path) -> str:
    """The gin lines of the imported model, to be given after a run's file.

    Args:
        arguments: Of GPT2.
        folder: Where it came from.
        out: Where it will be.
    """
    norm: Any = arguments["norm"]
    name = norm.func.__name__
    defaults = {key: one.default for key, one in inspect.signature(GPT2).parameters.items()}
    values = {**defaults, **arguments}
    lines = [f"    {key} = {f'@{name}' if key == 'norm' else repr(value)}" for key, value in values.items()]
    switches = [f"{name}.{key} = {value!r}" for key, value in norm.keywords.items()]
    return "\n".join(
        [
            f"# Change: the model of {folder.resolve().name} with its weights, by modlib import. After a run's file:",
            "#",
            "#   python launch.py --gin_file quickstart.gin --gin_file FOLDER/model.gin",
            "#",
            "# To train it well the data must be of its own tokenizer, whose files are beside this one:",
            "#   modlib data pack TEXT DATA --tokenizer FOLDER",
            "",
            f"IMPORTED = {str(out.absolute())!r}  # this folder; if it is moved, its new place",
            "",
            "train.model = @CheckpointedModel",
            "train.initialization = None  # everything is in the checkpoint",
            "CheckpointedModel:",
            "    model = @GPT2",
            "    checkpoint_path = %IMPORTED",
            "    checkpoint_loading = @FSDPCheckpointLoading",
            "    base_folder = %IMPORTED",
            "GPT2:",
            *lines,
            *switches,
            "",
        ]
    )
