"""`modlib export`: what transformers reads gives the run's own logits."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from typer.testing import CliRunner

from modlib.cli.main import app
from modlib.cli.models.trained_run import load_run
from modlib.data.packed.writer import PackedFileWriter
from modlib.data.tokenizers.from_files import load_tokenizer
from modlib.models.gpt2 import GPT2
from modlib.models.huggingface import HuggingFacePretrainedModel
from modlib.models.huggingface_export import export_huggingface
from modlib.models.lora import LoRAModel
from modlib.models.weights import named_state
from modlib.runtime.errors import ConfigError
from modlib.runtime.logs import stop_logging
from modlib.runtime.run_folder import RunFolder
from tests.launching_command import launch
from tests.models.test_huggingface_export import TEMPLATE, make_base

pytestmark = pytest.mark.slow  # each asks a run that was trained

transformers = pytest.importorskip("transformers")
LLAMA = {
    "model_type": "llama",
    "vocab_size": 80,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two steps each of debug/tiny.gin with its own model and with a Llama of transformers."""
    folder = tmp_path_factory.mktemp("runs")
    for name, more in (("gpt2", []), ("llama", ["--gin_file", "models/huggingface.gin"])):
        flags = ["NUM_STEPS=2", "CHECKPOINT_EVERY=1", "LR=0.1"]
        done = launch("debug/tiny.gin", flags, *more, "--runs_dir", str(folder), "--name", name)
        assert done.returncode == 0, done.stderr
        assert "sample step=2" in done.stdout + done.stderr
    return folder


@pytest.fixture(autouse=True)
def _logging() -> Iterator[None]:
    yield
    stop_logging()


def export(*words: str | Path, code: int = 0) -> Any:
    done = CliRunner().invoke(app, ["export", *map(str, words)])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exc_info
    assert done.exit_code == code, done.output
    return done


def tokens(vocab_size: int) -> torch.Tensor:
    return torch.randint(vocab_size, (2, 20), generator=torch.Generator().manual_seed(1))


def same_logits(folder: Path, model: nn.Module, kind: str = "AutoModelForCausalLM") -> Any:
    theirs, info = getattr(transformers, kind).from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    ids = tokens(int(model.vocab_size))  # type: ignore[arg-type]
    with torch.no_grad():
        expected = model.eval()(ids)
        atol = 1e-5 * max(1.0, float(expected.abs().max()))
        torch.testing.assert_close(theirs.eval()(ids).logits, expected, rtol=1e-5, atol=atol)
    assert expected.std() > 0.05
    return theirs


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_a_run_gives_the_same_logits_in_transformers(runs: Path, name: str, tmp_path: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in (runs / name).rglob("*")}
    done = export(runs / name, tmp_path / "new" / "out")
    assert done.stdout.endswith("of step 2, read by transformers' from_pretrained\n")
    trained = load_run(RunFolder(runs / name))
    theirs = same_logits(tmp_path / "new" / "out", trained.model)
    assert {path: path.stat().st_mtime_ns for path in (runs / name).rglob("*")} == before
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "new" / "out")
    ids = tokenizer("def __init__(self):\n")["input_ids"]
    assert tokenizer.decode(ids) == "def __init__(self):\n"
    assert theirs.config.eos_token_id == theirs.generation_config.eos_token_id == tokenizer.eos_token_id
    assert tokenizer.eos_token == "<|endoftext|>"
    assert {path.name for path in (tmp_path / "new").iterdir()} == {"out"}

    export(name, tmp_path / "first", "--step", "1", "--runs_dir", runs)
    same_logits(tmp_path / "first", load_run(RunFolder(runs / name), 1).model)
    with pytest.raises(AssertionError):
        same_logits(tmp_path / "first", trained.model)


def test_the_end_of_a_text_is_what_ends_the_datas_documents(runs: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(runs / "gpt2", tmp_path / "run"))
    tokenizer = load_tokenizer("stdlib:train")
    data = tmp_path / "data.packed"
    with PackedFileWriter(
        data, vocab_size=4096, tokenizer_fingerprint=tokenizer.fingerprint, end_of_document_id=300
    ) as writer:
        writer.write(np.arange(200))
    shutil.copyfile(tokenizer.path, tmp_path / "data.tokenizer.json")
    config = run / "config.gin"
    config.write_text(config.read_text().replace("'stdlib:train'", f"'{data}'"))
    export(run, tmp_path / "out")
    exported = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert exported.eos_token_id == 300
    assert json.loads((tmp_path / "out" / "config.json").read_text())["eos_token_id"] == 300


def test_nothing_is_overwritten(runs: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("dear")
    text = "must be a new or empty folder; nothing is overwritten, so name another"
    done = export(runs / "gpt2", tmp_path, code=2)
    assert done.stderr == f"config error; nothing was started\n  OUT ({tmp_path}) {text}\n"
    assert text in export(runs / "gpt2", tmp_path / "mine", code=2).stderr
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
    (tmp_path / "empty").mkdir()
    export(runs / "gpt2", tmp_path / "empty")
    assert (tmp_path / "empty" / "model.safetensors").is_file()


def test_a_checkpoint_that_is_not_there(runs: Path, tmp_path: Path) -> None:
    done = export(runs / "gpt2", tmp_path / "out", "--step", "7", code=4)
    assert f"--step (7) must be a checkpoint of {runs / 'gpt2'}, which has 1, 2" in done.stderr
    done = export(runs / "gpt2", tmp_path / "out", "--checkpoint", "7", code=4)
    assert "warning: --checkpoint is called --step since 0.2; write --step 7\n" in done.stderr
    assert f"--step (7) must be a checkpoint of {runs / 'gpt2'}, which has 1, 2" in done.stderr
    done = export(runs / "gpt2", tmp_path / "out", "--checkpoint", "1", "--step", "2", code=2)
    assert "--checkpoint (1) must be --step (2), whose old name it is; give --step alone" in done.stderr
    assert "is a folder without run.json" in export(tmp_path, tmp_path / "out", code=4).stderr
    assert not (tmp_path / "out").exists()


def test_without_its_tokenizer_the_model_is_still_written(runs: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(runs / "gpt2", tmp_path / "gpt2"))
    config = run / "config.gin"
    config.write_text(config.read_text().replace("'stdlib:train'", f"'{tmp_path}/gone.packed'"))
    done = export(run, tmp_path / "out")
    assert "exported without the training data's tokenizer" in done.stderr
    assert not (tmp_path / "out" / "tokenizer.json").exists()
    assert json.loads((tmp_path / "out" / "config.json").read_text())["eos_token_id"] is None


def test_the_newest_checkpoint_that_is_undamaged(runs: Path, tmp_path: Path) -> None:
    """Damage is noticed while the folder is written; then it is dropped, and the checkpoint before is taken."""
    run = Path(shutil.copytree(runs / "gpt2", tmp_path / "run"))
    data = run / "checkpoints" / "step-00000002" / "data-00000-00000.bin"
    content = bytearray(data.read_bytes())
    content[100] ^= 1
    data.chmod(0o644)
    data.write_bytes(content)
    done = export(run, tmp_path / "out")
    assert "checkpoint step-00000002 is damaged and skipped" in done.stderr
    assert "of step 1, read by transformers' from_pretrained" in done.stdout
    same_logits(tmp_path / "out", load_run(RunFolder(run), 1).model)
    assert "has SHA-256" in export(run, tmp_path / "two", "--step", "2", code=4).stderr
    assert {path.name for path in tmp_path.iterdir()} == {"run", "out"}


def test_weights_alone_and_in_another_dtype(runs: Path, tmp_path: Path) -> None:
    done = export(runs / "gpt2", tmp_path / "out", "--plain", "--dtype", "bfloat16")
    assert done.stdout.endswith("GPT2 of step 2, its state in model.safetensors\n")
    assert not (tmp_path / "out" / "config.json").exists()
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    state = load_run(RunFolder(runs / "gpt2")).model.cpu().state_dict()
    assert set(tensors) == set(state)
    assert all(torch.equal(tensors[name], tensor.bfloat16()) for name, tensor in state.items())
    text = "--dtype (half) must be one of float32, bfloat16, float16"
    assert text in export(runs / "gpt2", tmp_path / "half", "--dtype", "half", code=2).stderr


SHAPES: dict[str, dict[str, Any]] = {
    "gpt2": {"activation": "gelu_tanh", "ffn_dim": 80},
    "gpt2 untied": {"tie_embeddings": False, "activation": "relu", "dropout": 0.1},
    "llama": {
        "position": "rotary",
        "norm": nn.RMSNorm,
        "activation": "swiglu",
        "bias": False,
        "num_kv_heads": 2,
        "rope_theta": 5e5,
        "tie_embeddings": False,
    },
}


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_of_gpt2_that_transformers_has(shape: str, tmp_path: Path) -> None:
    model = GPT2(vocab_size=80, seq_len=32, num_layers=2, num_heads=4, dim=32, **SHAPES[shape])
    export_huggingface(model, tmp_path / "out")
    theirs = same_logits(tmp_path / "out", model)
    assert theirs.config.model_type == shape.split()[0]
    assert theirs.config.max_position_embeddings == 32


def test_masked_models_and_pretrained_ones(tmp_path: Path) -> None:
    bert = {**LLAMA, "model_type": "bert"}
    del bert["num_key_value_heads"]
    model = HuggingFacePretrainedModel(config=bert, model_type="AutoModelForMaskedLM")
    export_huggingface(model, tmp_path / "bert")
    same_logits(tmp_path / "bert", model, "AutoModelForMaskedLM")

    source = transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA, tie_word_embeddings=True, pad_token_id=3))
    source.generation_config.temperature = 0.7
    source.generation_config.do_sample = True
    source.save_pretrained(tmp_path / "source")
    model = HuggingFacePretrainedModel(path=str(tmp_path / "source"))
    export_huggingface(model, tmp_path / "out")
    theirs = same_logits(tmp_path / "out", model)
    assert theirs.generation_config.temperature == 0.7
    assert theirs.config.pad_token_id == 3
    for name, tensor in source.state_dict().items():
        assert torch.equal(theirs.state_dict()[name], tensor), name


@pytest.mark.slow
def test_a_fine_tuned_chat_model_is_merged_and_can_be_talked_to(tmp_path: Path) -> None:
    """A folder of transformers, adapters trained beside it on conversations, and a plain folder again."""
    base = make_base(tmp_path / "base")
    talks = ({"role": "user", "content": f"hello {n}"} for n in range(80))
    rows = [{"messages": [talk, {"role": "assistant", "content": "hello world user hello world"}]} for talk in talks]
    (tmp_path / "chat.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    template = tmp_path / "template.jinja"
    template.write_text("[chat]\n" + TEMPLATE)
    data = tmp_path / "chat.packed"
    words = ("--tokenizer", str(base), "--chat", "--chat_template", str(template))
    done = CliRunner().invoke(app, ["data", "pack", str(tmp_path / "chat.jsonl"), str(data), *words])
    assert done.exit_code == 0, done.output
    flags = ["NUM_STEPS=3", "LR=0.1", f"BASE='{base}'", f"DATA='{data}'", f"VAL_DATA='{data}'"]
    files = ("--gin_file", "models/lora_pretrained.gin", "--gin_file", "data/packed_documents.gin")
    done = launch("debug/tiny.gin", flags, *files, "--runs_dir", str(tmp_path), "--name", "tuned")
    assert done.returncode == 0, done.stderr
    export(tmp_path / "tuned", tmp_path / "out", "--dtype", "float32")
    model = load_run(RunFolder(tmp_path / "tuned")).model
    merged = same_logits(tmp_path / "out", model)
    assert type(merged) is transformers.LlamaForCausalLM
    with pytest.raises(AssertionError):
        same_logits(base, model)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert (tokenizer.eos_token, tokenizer.bos_token, tokenizer.padding_side) == ("<|im_end|>", "<s>", "left")
    assert tokenizer.chat_template == template.read_text()
    assert (tmp_path / "out" / "LICENSE").is_file()
    done = export(tmp_path / "tuned", tmp_path / "half")
    assert json.loads((tmp_path / "half" / "config.json").read_text())["dtype"] == "bfloat16"
    export_huggingface(model, tmp_path / "in memory")  # the same bytes as streamed from base and checkpoint
    assert (tmp_path / "in memory" / "model.safetensors").read_bytes() == (
        tmp_path / "half" / "model.safetensors"
    ).read_bytes()


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_adapters_are_merged_and_the_model_stays(kind: str, tmp_path: Path) -> None:
    def plain() -> nn.Module:
        if kind == "gpt2":
            return GPT2(vocab_size=80, seq_len=32, num_layers=2, num_heads=4, dim=32, activation="gelu_tanh")
        return HuggingFacePretrainedModel(config=LLAMA)

    target = "attention.qkv" if kind == "gpt2" else "q_proj"
    model = LoRAModel(plain, r=2, alpha=4.0, targets=[target])
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora" in name:
                parameter.normal_(std=0.3)
    before = {name: tensor.detach().clone() for name, tensor in named_state(model).items()}
    export_huggingface(model, tmp_path / "out")
    same_logits(tmp_path / "out", model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in named_state(model).items())


def test_a_model_that_transformers_does_not_have(tmp_path: Path) -> None:
    odd = GPT2(vocab_size=80, seq_len=32, num_layers=1, num_heads=4, dim=32, position="none")
    with pytest.raises(ConfigError, match="transformers has no architecture for this model"):
        export_huggingface(odd, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
