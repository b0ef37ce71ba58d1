"""What a folder of transformers says beside its weights, for a folder that is made of it."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from modlib.models.exported_tensors import DtypeOf
from modlib.models.huggingface_weights import opened
from modlib.runtime.errors import CheckpointError, ConfigError
from modlib.runtime.json_files import JSONError, read_json

logger = logging.getLogger("modlib")

WEIGHT_SUFFIXES = (
    ".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".onnx", ".onnx_data", ".gguf", ".npz",
    ".tflite", ".ot", ".pkl", ".index.json",
)  # fmt: skip
"""Files of other weights, or of the same in another format: the export's own take their place."""
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "vocab.txt", "merges.txt", "chat_template.jinja", "chat_template.json",
)  # fmt: skip
WRITTEN = ("config.json", "model.gin")
FOLDERS = ("additional_chat_templates",)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def kept_files(base: Path) -> Iterator[Path]:
    """What a folder holds beside weights and config: tokenizer, generation settings, README, licence, preprocessors.

    Relative to it. Hidden files and other folders stay where they are, and so does what a link finds outside the
    folder, unless it is a snapshot of the hub's cache, whose files are links into its blobs.
    """
    allowed = [base.resolve(), *([base.resolve().parent.parent / "blobs"] if base.parent.name == "snapshots" else [])]
    for file in sorted([*base.iterdir(), *(file for name in FOLDERS for file in (base / name).glob("*"))]):
        name = file.name
        if name.startswith(".") or name.endswith(WEIGHT_SUFFIXES) or name in WRITTEN or not file.is_file():
            continue
        if not any(file.resolve().is_relative_to(folder) for folder in allowed):
            logger.warning("%s is not copied: it is a link to a file outside its folder", file)
            continue
        yield file.relative_to(base)


def keep_files(base: Path, folder: Path, *, tokenizer: bool) -> None:
    """Copy them, byte by byte.

    Args:
        base: The folder that was trained from.
        folder: Where they go.
        tokenizer: Whether the tokenizer's are among them.

    Raises:
        OSError: A file cannot be read or written.
    """
    for name in kept_files(base):
        if tokenizer or not (name.name in TOKENIZER_FILES or name.suffix == ".model"):
            (folder / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(base / name, folder / name)


def base_config(base: Path) -> dict[str, Any]:
    """Its config.json as plain JSON; empty where that cannot be read so (transformers may have read it otherwise)."""
    try:
        return read_json(base / "config.json", dict[str, Any], finite=True)
    except JSONError:
        return {}


def dtypes_of(base: Path, dtype: str | None) -> DtypeOf:
    """The dtype of each tensor: that of the base's weights, or the one that was asked for.

    Args:
        base: The folder that was trained from; a tensor that it does not hold gets the dtype its config names.
        dtype: One of DTYPES for all of them; None takes the base's.

    Raises:
        ConfigError: Another dtype.
    """
    if dtype is not None:
        return of_one_dtype(dtype)
    config = base_config(base)
    named = DTYPES.get(str(config.get("dtype", config.get("torch_dtype"))).removeprefix("torch."))
    from safetensors import SafetensorError

    stored: dict[str, torch.dtype | None] = {}
    try:
        with opened(base) as files:
            stored = {name: _STORED.get(files[name].get_slice(name).get_dtype()) for name in files}
    except (SafetensorError, OSError, CheckpointError) as error:
        logger.warning("dtypes of the weights in %s cannot be read, so config.json says them: %s", base, error)
    return lambda name: stored.get(name) or named


def of_one_dtype(dtype: str | None) -> DtypeOf:
    """The same dtype for every tensor; None leaves each its own.

    Raises:
        ConfigError: Not one of DTYPES.
    """
    if dtype is not None and dtype not in DTYPES:
        raise ConfigError(f"--dtype ({dtype}) must be one of {', '.join(DTYPES)}")
    return lambda _: None if dtype is None else DTYPES[dtype]


_STORED = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
