"""Exported folders read by a real transformers 4: the same logits, the same tokens, the same ids."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from modlib.models.gpt2 import GPT2
from modlib.models.huggingface import HuggingFacePretrainedModel
from modlib.models.huggingface_export import export_huggingface
from tests.models.test_huggingface_export import SCALED, TINY, data_tokenizer, make_base

pytestmark = pytest.mark.slow
PINNED = ("transformers==4.57.6", "huggingface_hub==0.36.0", "tokenizers==0.22.2")
READER = """
import json, os, sys
import torch, transformers
transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()
from transformers import AutoModelForCausalLM, AutoTokenizer
told = {}
for folder in sys.argv[1:]:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        logits = model(torch.arange(60).view(2, 30), use_cache=False).logits
    told[folder] = {"version": transformers.__version__, "logits": logits.tolist()}
    told[folder]["eos"] = model.generation_config.eos_token_id
    if not os.path.exists(folder + "/tokenizer.json"):
        continue
    tokenizer = AutoTokenizer.from_pretrained(folder)
    told[folder]["ids"] = tokenizer("hello world<|im_end|>")["input_ids"]
    told[folder]["keys"] = sorted(tokenizer("hello"))
    told[folder]["special"] = [tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token, tokenizer.padding_side]
    told[folder]["all"] = sorted(tokenizer.all_special_tokens)
    told[folder]["template"] = tokenizer.chat_template
print(json.dumps(told))
"""


@pytest.fixture(scope="module")
def version_4(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with transformers 4 and what it needs in other versions; torch and the rest are this environment's."""
    folder = tmp_path_factory.mktemp("version_4")
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder), *PINNED]
    done = subprocess.run(install, capture_output=True, text=True, timeout=300)
    if done.returncode:
        pytest.skip(f"{' '.join(PINNED)} cannot be installed here: {done.stderr.strip()[-300:]}")
    return folder


def read(folders: list[Path], packages: Path | None = None) -> dict[str, Any]:
    """What a version of transformers says of exported folders."""
    place = {} if packages is None else {"PYTHONPATH": str(packages)}
    done = subprocess.run(
        [sys.executable, "-c", READER, *map(str, folders)],
        capture_output=True, text=True, timeout=300, env={**os.environ, "HF_HUB_OFFLINE": "1", **place},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def networks() -> dict[str, dict[str, Any]]:
    small = {name: value for name, value in TINY.items() if name != "head_dim"}
    wide = {**small, "initializer_range": 0.2, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": None}
    partial = {"rope_type": "default", "rope_theta": 3e4, "partial_rotary_factor": 0.5}
    return {
        "llama": {**wide, "rope_parameters": SCALED},
        "qwen3": {**wide, "head_dim": 16, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
        "mixtral": {**wide, "num_local_experts": 4, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
        "gemma3_text": {**wide, "head_dim": 8, "sliding_window": 8},
        "gpt_neox": {**{k: v for k, v in wide.items() if k != "num_key_value_heads"}, "rope_parameters": partial},
        "phi": {**wide, "rope_parameters": partial},
        "mistral": {**wide, "rope_parameters": {"rope_type": "linear", "rope_theta": 2e4, "factor": 4.0}},
    }


def test_version_4_reads_the_same_model(version_4: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    base = make_base(tmp_path / "base")
    models: dict[str, nn.Module] = {
        kind: HuggingFacePretrainedModel(config={"model_type": kind, **config}) for kind, config in networks().items()
    }
    models["chat"] = HuggingFacePretrainedModel(path=str(base))
    like_llama = {"position": "rotary", "norm": nn.RMSNorm, "activation": "swiglu", "bias": False, "rope_theta": 5e5}
    sizes: dict[str, Any] = {"vocab_size": 288, "seq_len": 32, "num_layers": 2, "num_heads": 4, "dim": 32}
    models["own"] = GPT2(**sizes, **like_llama)  # type: ignore[arg-type]
    models["own gpt2"] = GPT2(**sizes)
    for name, model in models.items():
        with torch.no_grad():
            for parameter in model.parameters() if name.startswith("own") else ():
                parameter.add_(torch.randn_like(parameter), alpha=0.2)
        tokenizer = data_tokenizer(base) if name in ("own", "chat") else None
        export_huggingface(model, tmp_path / name, tokenizer, dtype="float32")
    folders = [tmp_path / name for name in models]
    older, newer = read(folders, version_4), read(folders)
    for name, model in models.items():
        old, new = older[str(tmp_path / name)], newer[str(tmp_path / name)]
        assert (old.pop("version"), new.pop("version")[:2]) == ("4.57.6", "5.")
        found, expected = torch.tensor(old.pop("logits")), torch.tensor(new.pop("logits"))
        with torch.no_grad():
            ours = model.eval()(torch.arange(60).view(2, 30))
        scale = float(ours.abs().max())
        torch.testing.assert_close(expected, ours, rtol=0, atol=1e-5 * scale)
        torch.testing.assert_close(found, ours, rtol=0, atol=1e-5 * scale, msg=lambda text, n=name: f"{n}: {text}")
        assert ours.std() > 0.05
        assert old == new, name
        assert ("special" in old) == (name in ("own", "chat"))
    assert older[str(tmp_path / "chat")]["special"] == ["<s>", "<|im_end|>", "<pad>", "left"]
