"""LoRA beside other libraries and other parts: peft, transformers, wrappers, the shipped gin file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from typer.testing import CliRunner

from modlib.checkpointing.loading import load, open_checkpoint
from modlib.checkpointing.model_loading import FSDPCheckpointLoading, TorchCheckpointLoading
from modlib.checkpointing.writing import save
from modlib.cli.main import app
from modlib.distributed.fsdp import shard
from modlib.models.huggingface import HuggingFacePretrainedModel
from modlib.models.initialization import ComposedInitializer
from modlib.models.lora import LoRAModel, merged_state_dict
from modlib.models.weights import initialize
from modlib.models.wrappers import CheckpointedModel, FSDPModel, InitializedModel
from modlib.runtime.errors import ConfigError
from modlib.runtime.logs import stop_logging
from tests.launching_command import launch
from tests.models.test_lora import bits, count_up, equal, gpt2, in_memory, lora, parts_of, train
from tests.training.test_plain_loop import SEQ_LEN, VOCAB, batch
from tests.workers import run_ranks

LLAMA = {
    "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": SEQ_LEN, "tie_word_embeddings": False, "use_cache": False,
    "attention_bias": True,
}  # fmt: skip
SMALL_GPT2 = {
    "vocab_size": VOCAB, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": SEQ_LEN, "use_cache": False,
    "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0,
}  # fmt: skip


class Network(nn.Module):
    """A transformers model that gives logits."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.model = network

    def forward(self, tokens: Tensor) -> Tensor:
        return self.model(tokens).logits


def transformers_model(kind: str) -> nn.Module:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    if kind == "llama":
        return transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA))
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**SMALL_GPT2))


@pytest.mark.parametrize("bias", ["none", "all", "lora_only"])
@pytest.mark.parametrize(
    ("kind", "targets"),
    [
        ("llama", ["q_proj", "v_proj", "o_proj", "down_proj"]),
        ("llama", ["embed_tokens", "lm_head", "gate_proj"]),
        ("gpt2", ["c_attn", "c_proj", "c_fc"]),
    ],
)
def test_whole_models_equal_peft(kind: str, targets: list[str], bias: Any) -> None:
    peft = pytest.importorskip("peft")
    model = LoRAModel(lambda: Network(transformers_model(kind)), r=4, alpha=6, targets=targets, bias=bias)
    config = peft.LoraConfig(
        r=4, lora_alpha=6, target_modules=targets, bias=bias, fan_in_fan_out=kind == "gpt2", lora_dropout=0.0
    )
    oracle = peft.get_peft_model(transformers_model(kind), config)
    ours, theirs = dict(model.named_parameters()), dict(oracle.named_parameters())
    assert sum(p.numel() for p in ours.values() if p.requires_grad) == oracle.get_nb_trainable_parameters()[0]

    pairs = {}
    for name, parameter in theirs.items():
        plain = name.removeprefix("base_model.").replace(".base_layer", "")
        for ab in ("lora_A", "lora_B"):
            plain = plain.replace(f"{ab}.default.weight", ab).replace(ab.replace("_", "_embedding_") + ".default", ab)
        pairs[plain] = (ours[plain], parameter)
    assert pairs.keys() == ours.keys()
    torch.manual_seed(1)
    with torch.no_grad():
        for mine, other in pairs.values():
            if mine.requires_grad:
                mine.normal_(std=0.2)
                other.copy_(mine)
    tokens = batch(0)[0]
    outputs = model(tokens), oracle(tokens).logits
    torch.testing.assert_close(*outputs)
    for output in outputs:
        (output**2).mean().backward()
    for name, (mine, other) in pairs.items():
        assert mine.requires_grad == other.requires_grad, name
        if mine.requires_grad:
            torch.testing.assert_close(mine.grad, other.grad)


def test_a_fine_tuned_llama_is_merged_into_plain_transformers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    transformers_model("llama").save_pretrained(tmp_path / "base")

    def pretrained() -> nn.Module:
        return Network(transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base"))

    layers = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head"]
    model = LoRAModel(pretrained, r=8, alpha=16, targets=layers)
    losses = [loss for loss, _ in train(parts_of(model), range(100), data=count_up)]
    assert losses[0] > 4.0
    assert losses[-1] < 0.5
    merged = {name.removeprefix("model."): tensor for name, tensor in merged_state_dict(model).items()}
    network = transformers_model("llama")
    network.load_state_dict(merged)
    network.save_pretrained(tmp_path / "tuned")
    tuned = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "tuned")
    tokens = count_up(999)[0]
    with torch.no_grad():
        torch.testing.assert_close(tuned(tokens).logits, model(tokens), rtol=1e-5, atol=1e-5)


def hugging_face(folder: Path, **settings: Any) -> nn.Module:
    targets = ["q_proj", "v_proj", "down_proj"]
    return lora(lambda: HuggingFacePretrainedModel(path=str(folder)), **{"targets": targets} | settings)


def train_hugging_face(folder: Path, steps: int) -> tuple[list, dict]:
    with torch.device("meta"):
        model = hugging_face(folder)
    if dist.is_initialized():
        shard(model, init_device_mesh("cpu", (dist.get_world_size(),)), "float32")
    model.to_empty(device="cpu")
    initialize(model, None, 7)
    return train(parts_of(model), range(steps), data=count_up), merged_state_dict(model)


@pytest.mark.slow
def test_adapters_on_a_pretrained_model(tmp_path: Path) -> None:
    base = transformers_model("llama")
    base.save_pretrained(tmp_path / "base")
    with torch.device("meta"):
        model = hugging_face(tmp_path / "base")
    model.to_empty(device="cpu")
    initialize(model, None, 7)
    tokens = count_up(0)[0]
    assert torch.equal(model(tokens), base(tokens).logits)
    assert model.num_parameters()["trainable"] == sum(p.numel() for p in model.parameters() if p.requires_grad)

    lines, merged = train_hugging_face(tmp_path / "base", 5)
    for sharded_lines, sharded_merged in run_ranks(2, train_hugging_face, tmp_path / "base", 5):
        for one, two in zip(lines, sharded_lines, strict=True):
            assert two == pytest.approx(one, abs=1e-5)
        for name in merged:
            torch.testing.assert_close(sharded_merged[name], merged[name], rtol=1e-4, atol=1e-5)

    parts = parts_of(model)
    assert train(parts, range(5), data=count_up) == lines
    base.load_state_dict({name.removeprefix("network."): tensor for name, tensor in merged.items()})
    with torch.no_grad():
        torch.testing.assert_close(base(tokens).logits, model(tokens), rtol=1e-5, atol=1e-5)

    saving = save(tmp_path / "checkpoints", step=5, model=model, optimizer=parts.optimizer, scheduler=parts.scheduler)
    assert {*names_in(saving.path)} == {f"model.{name}" for name in bits(model) if "lora_" in name}
    with torch.device("meta"):
        again = hugging_face(tmp_path / "base")
    again.to_empty(device="cpu")
    initialize(again, None, 0)
    load(saving.path, model=again)
    assert equal(bits(again), bits(model))


def names_in(path: Path) -> list[str]:
    return [name for name in open_checkpoint(path).manifest.tensors if name.startswith("model.")]


def test_an_adapted_output_of_a_pretrained_model_needs_all_logits(tmp_path: Path) -> None:
    transformers_model("llama").save_pretrained(tmp_path)
    model = hugging_face(tmp_path, targets=["lm_head"])
    with pytest.raises(ConfigError, match="without bias or adapter"):
        model(batch(0)[0], head=lambda hidden, weight: hidden.sum())


@pytest.mark.parametrize("in_order", [True, False])
def test_it_composes_with_the_other_wrappers(tmp_path: Path, in_order: bool) -> None:
    plain = in_memory(gpt2, seed=3)
    torch.save({name: tensor.detach() for name, tensor in plain.state_dict().items()}, tmp_path / "plain.bin")
    saved = save(tmp_path / "checkpoints", step=1, model=plain)

    def initialized() -> nn.Module:
        return InitializedModel(gpt2, ComposedInitializer, seed=3)

    def from_file() -> nn.Module:
        return CheckpointedModel(gpt2, str(tmp_path / "plain.bin"), TorchCheckpointLoading)

    def from_run() -> nn.Module:
        return CheckpointedModel(gpt2, str(saved.path), FSDPCheckpointLoading)

    adapters = {name: tensor for name, tensor in bits(in_memory(lora, 11)).items() if "lora_" in name}
    for inner in (initialized, from_file, from_run):

        def wrapped(inner: Callable[[], nn.Module] = inner) -> nn.Module:
            return lora(lambda: FSDPModel(inner)) if in_order else FSDPModel(lambda: lora(inner))

        model = in_memory(wrapped, seed=11)
        assert equal(bits(model), bits(plain) | adapters)
        assert model.sharding is not None


def test_the_shipped_gin_file_trains_and_its_run_generates(tmp_path: Path) -> None:
    shipped = ("--gin_file", "models/lora.gin", "--runs_dir", str(tmp_path), "--name", "run")
    done = launch("debug/tiny.gin", ["NUM_STEPS=2", "LR=0.1"], *shipped)
    assert done.returncode == 0, done.stderr
    sample = json.loads((tmp_path / "run" / "run.json").read_text())["sample"]
    words = ["--prompt", "def __init__(self", "--max_new_tokens", "8"]
    try:
        generated = CliRunner().invoke(app, ["generate", str(tmp_path / "run"), *words])
    finally:
        stop_logging()
    assert (generated.exit_code, generated.stdout) == (0, sample + "\n")
    names = names_in(tmp_path / "run" / "checkpoints" / "step-00000002")
    assert len(names) == 8
    assert all("lora_" in name for name in names)
