"""What modlib makes of the architectures of transformers: tiny models from their config alone."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

import modlib
from modlib.runtime.signals import STOP_AFTER
from tests.cli.commands import modlib as command

SIZES = {
    "vocab_size": 4096,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 32,
    "pad_token_id": None,
}
GROUPED = {"num_key_value_heads": 2}
ARCHITECTURES: dict[str, tuple[dict[str, Any], list[str]]] = {
    "llama": (GROUPED, ["q_proj", "v_proj"]),
    "gpt2": ({}, ["c_attn"]),
    "gpt_neox": ({}, ["query_key_value"]),
    "opt": ({"ffn_dim": 64, "word_embed_proj_dim": 32}, ["q_proj", "v_proj"]),
    "falcon": ({"alibi": True, "num_kv_heads": 4, "new_decoder_architecture": False}, ["query_key_value"]),
    "phi": ({}, ["q_proj", "v_proj"]),
    "phi3": (GROUPED, ["qkv_proj"]),
    "mistral": (GROUPED, ["q_proj", "v_proj"]),
    "mixtral": ({**GROUPED, "num_local_experts": 4}, ["q_proj", "v_proj"]),
    "qwen2": (GROUPED, ["q_proj", "v_proj"]),
    "qwen3": ({**GROUPED, "head_dim": 8}, ["q_proj", "v_proj"]),
    "qwen3_moe": (
        {**GROUPED, "head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32},
        ["q_proj", "v_proj"],
    ),
    "gemma3_text": ({**GROUPED, "head_dim": 8}, ["q_proj", "v_proj"]),
    "olmo2": (GROUPED, ["q_proj", "v_proj"]),
    "granite": (GROUPED, ["q_proj", "v_proj"]),
    "starcoder2": (GROUPED, ["q_proj", "v_proj"]),
    "stablelm": (GROUPED, ["q_proj", "v_proj"]),
    "smollm3": (GROUPED, ["q_proj", "v_proj"]),
    "deepseek_v3": (
        {
            "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "n_shared_experts": 1,
            "first_k_dense_replace": 1, "n_group": 2, "topk_group": 1, "q_lora_rank": 16, "kv_lora_rank": 16,
            "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8,
        },
        ["o_proj"],
    ),
    "mamba": ({"state_size": 8, "use_mambapy": False}, ["in_proj"]),
}  # fmt: skip
"""Fields beside SIZES, and what LoRA adapts."""


class Row(NamedTuple):
    """A line of the table of architectures; `yes` or what came instead."""

    architecture: str
    trains: str
    resumes: str
    exports: str
    reloads: str
    lora: str


def row(name: str, folder: Path) -> Row:
    """What comes of one architecture.

    Args:
        name: Its model_type, one of ARCHITECTURES.
        folder: For its runs.
    """
    fields, targets = ARCHITECTURES[name]
    config = {"model_type": name, **_sizes(name), **fields}
    out = folder / "exported"
    looks: dict[str, Callable[[], str]] = {
        "trains": lambda: _trains(config, folder),
        "resumes": lambda: _resumes(config, folder),
        "exports": lambda: _exports(folder, out),
        "reloads": lambda: _reloads(folder, out),
        "lora": lambda: _lora(config, targets, folder),
    }
    cells: dict[str, str] = {}
    for cell, look in looks.items():
        if cells.get("trains", "yes") != "yes" or (cell == "reloads" and cells["exports"] != "yes"):
            cells[cell] = "-"
            continue
        try:
            cells[cell] = look()
        except (Exception, AssertionError) as error:
            cells[cell] = next(iter(str(error).splitlines()), repr(error))[:160]
    return Row(name, **cells)


def rows(folder: Path) -> list[Row]:
    """The table of architectures; their runs are made in the folder."""
    return [row(name, folder / name) for name in ARCHITECTURES]


def _sizes(name: str) -> dict[str, Any]:
    """Those of SIZES that the architecture knows."""
    import transformers

    kind = transformers.CONFIG_MAPPING[name]
    known = {*(field.name for field in dataclasses.fields(kind)), *kind.attribute_map}
    return {field: value for field, value in SIZES.items() if field in known}


def _trained(config: Mapping[str, Any], folder: Path, name: str, stop_after: int | None = None, **params: str) -> Any:
    """A run of four steps of a tiny model; one that exists continues."""
    given = {"NUM_STEPS": 4, "CHECKPOINT_EVERY": 2, "LR": 5e-3, "WARMUP_STEPS": 1}
    words = [f"{key}={value!r}" for key, value in given.items()]
    words += [f"HuggingFacePretrainedModel.config={dict(config)!r}", "train.compile=False", "train.sample=None"]
    if "max_position_embeddings" not in config:
        words.append("HuggingFacePretrainedModel.seq_len=%SEQ_LEN")
    files = ["debug/tiny.gin", "models/huggingface.gin", *(["models/lora.gin"] if params else [])]
    words += [f"{key.replace('__', '.')}={value}" for key, value in params.items()]
    loaded = modlib.load_config(files, words)
    if stop_after is not None:
        os.environ[STOP_AFTER] = str(stop_after)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            return modlib.train(loaded, runs_dir=folder, name=name)
    finally:
        os.environ.pop(STOP_AFTER, None)


def _trains(config: Mapping[str, Any], folder: Path) -> str:
    losses = _trained(config, folder, "whole").curve()[1]
    return "yes" if losses[-1] < losses[0] else "loss does not fall"


def _resumes(config: Mapping[str, Any], folder: Path) -> str:
    _trained(config, folder, "stopped", stop_after=2)
    losses = _trained(config, folder, "stopped").curve()[1]
    return "to the bit" if losses.tolist() == modlib.load_run(folder / "whole").curve()[1].tolist() else "other losses"


def _exports(folder: Path, out: Path) -> str:
    command("export", folder / "whole", out)
    return "yes"


def _reloads(folder: Path, out: Path) -> str:
    from transformers import AutoModelForCausalLM

    tokens = torch.randint(0, 4096, (2, 16), generator=torch.Generator().manual_seed(0))
    model: Any = modlib.load_run(folder / "whole").model().cpu()
    attention = model.network.config._attn_implementation
    theirs = AutoModelForCausalLM.from_pretrained(str(out), dtype=torch.float32, attn_implementation=attention).eval()
    with torch.no_grad():
        difference = float((theirs(tokens).logits - model(tokens)).abs().max())
    return "equal logits" if difference == 0 else f"logits within {difference:.0e}"


def _lora(config: Mapping[str, Any], targets: list[str], folder: Path) -> str:
    run = _trained(
        config, folder, "lora",
        LoRAModel__model="@HuggingFacePretrainedModel", LoRAModel__targets=repr(targets), train__initialization="None",
    )  # fmt: skip
    losses = run.curve()[1]
    return "yes" if losses[-1] != losses[0] else "nothing is trained"
