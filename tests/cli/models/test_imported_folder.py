"""A folder of transformers becomes a GPT2 that computes the same, and the same folder again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from modlib.cli.models.imported_folder import import_huggingface
from modlib.config import load
from modlib.models.gpt2 import GPT2
from modlib.models.huggingface_export import export_huggingface
from modlib.models.weights import initialize
from modlib.models.wrappers import CheckpointedModel
from modlib.runtime.errors import CheckpointError, ConfigError, ModlibError, NonFiniteError
from modlib.training.building import build, build_experiment

transformers = pytest.importorskip("transformers")
TOKENIZER = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 7, "padding_side": "left"}


def saved(folder: Path, *, dtype: torch.dtype = torch.float32, **fields: Any) -> Any:
    """A model of transformers with uneven weights, in a folder with files beside it."""
    sizes = {"vocab_size": 61, "bos_token_id": 1, "eos_token_id": [2, 3], "initializer_range": 0.05}
    if fields.setdefault("model_type", "llama") == "gpt2":
        sizes |= {"n_positions": 24, "n_embd": 32, "n_layer": 2, "n_head": 4}
    else:
        sizes |= {"max_position_embeddings": 24, "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2}
        sizes |= {"num_attention_heads": 4, "num_key_value_heads": 2}
    config = transformers.AutoConfig.for_model(**{**sizes, **fields})
    torch.manual_seed(4)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.1)
    model.save_pretrained(folder)
    (folder / "tokenizer_config.json").write_text(json.dumps(TOKENIZER))
    (folder / "README.md").write_text("of its maker\n")
    return model


def trained(out: Path) -> Any:
    """The model as a run with debug/tiny.gin and then model.gin builds it, in memory with its weights."""
    config = load(["debug/tiny.gin", out / "model.gin"])
    experiment = build_experiment(config)
    assert experiment.initialization is None
    with torch.device("meta"):
        model = build(config, experiment.model)
    model.to_empty(device="cpu")
    initialize(model, None, 0)
    return model.eval()


@pytest.mark.parametrize(
    ("dtype", "fields"),
    [
        (torch.bfloat16, {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}),
        (torch.float32, {"tie_word_embeddings": True, "rms_norm_eps": 1e-3}),
        (torch.float16, {"model_type": "gpt2", "activation_function": "gelu_new"}),
    ],
    ids=["llama", "tied", "gpt2"],
)
def test_there_and_back_to_the_same_bytes(dtype: torch.dtype, fields: dict[str, Any], tmp_path: Path) -> None:
    folder, out, back = tmp_path / "theirs", tmp_path / "new" / "ours", tmp_path / "back"
    theirs = saved(folder, dtype=dtype, **fields).float()
    imported = import_huggingface(folder, out)
    assert imported.model.num_parameters()["total"] == sum(parameter.numel() for parameter in theirs.parameters())
    kept = {path.name for path in folder.iterdir()} - {"model.safetensors"}
    assert {path.name for path in out.iterdir()} == kept | {"model.gin", "checkpoints"}
    assert all((out / name).read_bytes() == (folder / name).read_bytes() for name in kept)

    model = trained(out)
    assert type(model) is GPT2
    tokens = torch.randint(61, (3, 24), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(model(tokens), theirs(tokens).logits, rtol=1e-5, atol=1e-5)
    export_huggingface(model, back)
    assert (back / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    assert {path.name for path in back.iterdir()} == {path.name for path in folder.iterdir()}
    was, now = (json.loads((place / "config.json").read_text()) for place in (folder, back))
    assert {name: now[name] for name in was if name != "n_inner"} == {n: was[n] for n in was if n != "n_inner"}


def test_published_gpt2_files_without_prefix_and_dtype(tmp_path: Path) -> None:
    """Config of half precision, weights of single: those count."""
    folder, out = tmp_path / "theirs", tmp_path / "ours"
    theirs = saved(folder, model_type="gpt2")
    state = {
        name.removeprefix("transformer."): tensor for name, tensor in load_file(folder / "model.safetensors").items()
    }
    state["h.0.attn.bias"] = torch.ones(1, 1, 24, 24, dtype=torch.uint8)
    save_file(state, folder / "model.safetensors")
    told = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**told, "dtype": "float16"}))
    import_huggingface(folder, out)
    assert json.loads((out / "config.json").read_text())["dtype"] == "float32"
    tokens = torch.arange(24)[None]
    with torch.no_grad():
        torch.testing.assert_close(trained(out)(tokens), theirs(tokens).logits, rtol=1e-5, atol=1e-5)


def refused(folder: Path, out: Path, kind: type[ModlibError], text: str) -> None:
    with pytest.raises(kind, match=text):
        import_huggingface(folder, out)
    assert not out.exists()
    assert not [path for path in out.parent.iterdir() if path.name.startswith(".")]


def test_what_cannot_be_imported_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    folder, out = tmp_path / "theirs", tmp_path / "ours"
    saved(folder)
    file, config = folder / "model.safetensors", json.loads((folder / "config.json").read_text())
    state = load_file(file)
    for other, text in (
        ({"head_dim": 16}, r"^head_dim \(16\) must be 8 to be expressed as GPT2; train the folder as it is: Hugging"),
        (
            {"model_type": "qwen2"},
            r"^model_type \('qwen2'\) must be 'gpt2', 'llama' or 'mistral'; GPT2 has no biases on queries, keys and "
            rf"values alone; train the folder as it is: HuggingFacePretrainedModel.path = '{folder}' \(models/",
        ),
    ):
        (folder / "config.json").write_text(json.dumps({**config, **other}))
        refused(folder, out, ConfigError, text)
    (folder / "config.json").write_text(json.dumps(config))
    name = "model.layers.0.mlp.up_proj.weight"
    for tensor, kind, text in (
        (
            state[name][:-1],
            CheckpointError,
            r"up_proj.weight gives \(39, 32\), blocks.0.feed_forward.up.weight is \(40",
        ),
        (
            state[name].to(torch.int8),
            CheckpointError,
            r"\(int8\) must be float32, bfloat16 or float16; take the folder",
        ),
        (state[name] * torch.inf, NonFiniteError, r"^blocks.0.feed_forward.up.weight must be finite to be saved"),
    ):
        save_file({**state, name: tensor.clone()}, file)
        refused(folder, out, kind, text)
    out.mkdir()
    (out / "mine").touch()
    with pytest.raises(ConfigError, match=r"must be a new or empty folder; nothing is overwritten, so name another$"):
        import_huggingface(folder, out)
    with pytest.raises(ConfigError, match=r"^base_folder \('.*ours'\) must be a folder with a config.json of transfo"):
        CheckpointedModel(lambda: None, str(out), lambda: None, base_folder=str(out))
