"""Models of transformers: the same logits, whatever they go through; weights that no world size changes."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

from modlib.distributed.clipping import GradientClipper
from modlib.distributed.fsdp import shard
from modlib.distributed.process_group import World
from modlib.inference.generation import generate
from modlib.models.gpt2 import GPT2
from modlib.models.huggingface import HuggingFacePretrainedModel
from modlib.models.initialization import ComposedInitializer
from modlib.models.weights import initialize
from modlib.nn.losses import ChunkedCLMCrossEntropyLoss, CLMCrossEntropyLoss
from modlib.optim.groups import DecayGroups
from modlib.runtime.errors import CheckpointError, ConfigError
from modlib.training.parts import assemble
from modlib.training.step import update
from tests.workers import run_ranks

transformers = pytest.importorskip("transformers")

VOCAB, SEQ_LEN = 97, 48
SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": SEQ_LEN,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
NEOX = {"pad_token_id": 0}
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama", **SIZES, "num_key_value_heads": 2},
    "llama_tied": {"model_type": "llama", **SIZES, "tie_word_embeddings": True},
    "gpt2": {"model_type": "gpt2", **SIZES},
    "qwen2": {"model_type": "qwen2", **SIZES, "num_key_value_heads": 2},
    "qwen3": {"model_type": "qwen3", **SIZES, "num_key_value_heads": 2, "head_dim": 8},
    "gemma2": {"model_type": "gemma2", **SIZES, "num_key_value_heads": 2, "head_dim": 8, **NEOX},
    "mixtral": {"model_type": "mixtral", **SIZES, "num_key_value_heads": 2, "num_local_experts": 4},
    "bert": {"model_type": "bert", **SIZES},
    "roberta": {"model_type": "roberta", **SIZES, "pad_token_id": 1},
}
del CONFIGS["gpt2"]["intermediate_size"]
MASKED = ("bert", "roberta")
EAGER = ("gemma2",)


def kind(name: str) -> str:
    return "AutoModelForMaskedLM" if name in MASKED else "AutoModelForCausalLM"


def arguments(name: str) -> dict[str, Any]:
    return {"model_type": kind(name), "attn_implementation": "eager" if name in EAGER else "sdpa"}


def oracle(name: str) -> Any:
    """transformers' own model, with weights large and uneven enough that a wrong place would show."""
    fields = dict(CONFIGS[name])
    config = transformers.AutoConfig.for_model(fields.pop("model_type"), **fields)
    model = getattr(transformers, kind(name)).from_config(config)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def on_meta(**given: Any) -> HuggingFacePretrainedModel:
    with torch.device("meta"):
        return HuggingFacePretrainedModel(**given)


def in_memory(seed: int = 3, **given: Any) -> HuggingFacePretrainedModel:
    """As training builds it: on meta, then memory full of garbage, then weights."""
    model = on_meta(**given)
    model.to_empty(device="cpu")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(float("nan"))
    initialize(model, None, seed)
    return model.eval()


def tokens(rows: int = 3, length: int = 20) -> torch.Tensor:
    return torch.randint(5, VOCAB, (rows, length), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_logits_equal_transformers(name: str, tmp_path: Path) -> None:
    oracle(name).save_pretrained(tmp_path)  # Mixtral's files hold expert by expert, the model all of them fused
    theirs = getattr(transformers, kind(name)).from_pretrained(
        tmp_path, attn_implementation=arguments(name)["attn_implementation"]
    )
    ours = in_memory(path=str(tmp_path), **arguments(name))
    expected, found = theirs.eval()(tokens()).logits, ours(tokens())
    assert expected.std() > 0.1
    assert torch.equal(found, expected)
    assert ours.num_parameters()["total"] == sum(parameter.numel() for parameter in theirs.parameters())
    assert (ours.vocab_size, ours.num_layers, ours.dim) == (VOCAB, 2, 32)
    assert ours.seq_len == (46 if name == "roberta" else SEQ_LEN)
    tied = ours.network.get_output_embeddings().weight is ours.network.get_input_embeddings().weight
    assert tied == (name not in ("llama", "qwen2", "qwen3", "mixtral"))
    assert [type(unit) for unit in ours.fsdp_units()] == [type(unit) for unit in _layers(ours.network)]


def _layers(network: Any) -> Any:
    base = network.base_model
    return next(layers for layers in (*base.children(), *base.modules()) if isinstance(layers, torch.nn.ModuleList))


@torch.no_grad()
def test_without_meta_it_has_its_weights_at_once(tmp_path: Path) -> None:
    theirs = oracle("llama").eval()
    theirs.save_pretrained(tmp_path)
    ours = HuggingFacePretrainedModel(path=str(tmp_path)).eval()
    assert torch.equal(ours(tokens()), theirs(tokens()).logits)
    assert torch.equal(ours.to(torch.float64)(tokens()), theirs.double()(tokens()).logits)


@pytest.mark.parametrize("absolute", [True, False])
def test_an_index_that_points_out_of_its_folder_is_refused(tmp_path: Path, absolute: bool) -> None:
    oracle("llama").save_pretrained(tmp_path / "model", max_shard_size="20KB")
    index = tmp_path / "model" / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    name = next(iter(content["weight_map"]))
    inside = tmp_path / "model" / content["weight_map"][name]
    outside = inside.rename(tmp_path / inside.name)
    named = str(outside) if absolute else f"../{inside.name}"
    files = content["weight_map"]
    files.update({each: named for each, file in files.items() if file == inside.name})
    index.write_text(json.dumps(content))
    with pytest.raises(CheckpointError) as caught:
        in_memory(path=str(tmp_path / "model"))
    assert str(caught.value) == (
        f"file ('{named}') of {index} must be one of the same folder; take the whole folder from its maker"
    )


@torch.no_grad()
def test_files_of_other_kinds_are_read(tmp_path: Path) -> None:
    theirs = oracle("llama_tied").eval()
    theirs.save_pretrained(tmp_path / "sharded", max_shard_size="20KB")
    assert (tmp_path / "sharded" / "model.safetensors.index.json").is_file()
    assert torch.equal(in_memory(path=str(tmp_path / "sharded"))(tokens()), theirs(tokens()).logits)
    theirs.save_pretrained(tmp_path / "bin")
    (tmp_path / "bin" / "model.safetensors").unlink()
    torch.save(theirs.state_dict(), tmp_path / "bin" / "pytorch_model.bin")
    assert torch.equal(in_memory(path=str(tmp_path / "bin"))(tokens()), theirs(tokens()).logits)
    theirs.to(torch.bfloat16).save_pretrained(tmp_path / "bfloat16")
    half = in_memory(path=str(tmp_path / "bfloat16"))
    assert {parameter.dtype for parameter in half.parameters()} == {torch.float32}
    assert torch.equal(half.network.lm_head.weight, theirs.lm_head.weight.float())


@pytest.mark.parametrize("name", ["llama", "bert"])
@torch.no_grad()
def test_padding_behind_an_attention_mask_changes_nothing(name: str) -> None:
    model = in_memory(config=CONFIGS[name], **arguments(name))
    ids, pad = tokens(2, 12), torch.full((2, 5), 7)
    # rotary positions are relative, so padding may stand before; learned ones need it behind
    order = (pad, ids) if name == "llama" else (ids, pad)
    padded, part = torch.cat(order, 1), slice(5, None) if name == "llama" else slice(0, 12)
    mask = (torch.cat([torch.zeros_like(t) if t is pad else torch.ones_like(t) for t in order], 1)).long()
    found = model({"input_ids": padded, "attention_mask": mask})[:, part]
    torch.testing.assert_close(found, model(ids), rtol=0, atol=1e-6)
    assert not torch.allclose(model(padded)[:, part], model(ids), atol=1e-4)


def whole(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    state = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {
        name: value.detach().full_tensor() if isinstance(value, DTensor) else value.detach()
        for name, value in state.items()
    }


def random_on_ranks(name: str, seed: int) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Weights and logits of a random model, sharded over the ranks there are."""
    model = on_meta(config=CONFIGS[name], **arguments(name))
    if dist.is_initialized():
        shard(model, init_device_mesh("cpu", (dist.get_world_size(),)), "float32")
    model.to_empty(device="cpu")
    initialize(model, None, seed)
    with torch.no_grad():
        logits = model.eval()(tokens())
    return whole(model), logits


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["llama_tied", *(pytest.param(name, marks=pytest.mark.slow) for name in ("gpt2", "bert"))]
)
def test_random_weights_do_not_depend_on_the_world_size(name: str) -> None:
    torch.manual_seed(11)
    before = torch.get_rng_state()
    state, logits = random_on_ranks(name, 3)
    assert torch.equal(before, torch.get_rng_state())
    assert all(bool(torch.isfinite(value).all()) for value in state.values())
    for other, other_logits in run_ranks(2, random_on_ranks, name, 3):
        assert other.keys() == state.keys()
        for key, value in state.items():
            assert torch.equal(other[key], value), key
        torch.testing.assert_close(other_logits, logits)
    changed, _ = random_on_ranks(name, 4)
    matrices = [key for key, value in state.items() if value.ndim == 2 and value.is_floating_point()]
    assert all(not torch.equal(changed[key], state[key]) for key in matrices)


def test_random_weights_are_of_the_architectures_own_rules() -> None:
    sizes = {"hidden_size": 256, "initializer_range": 0.03}
    state = whole(in_memory(config={**CONFIGS["gpt2"], **sizes}).network)
    fresh = transformers.GPT2LMHeadModel(transformers.GPT2Config(**{**CONFIGS["gpt2"], **sizes})).state_dict()
    for key, value in state.items():
        if value.ndim == 2:
            torch.testing.assert_close(value.std(), fresh[key].std(), rtol=0.05, atol=0)
        else:
            assert torch.equal(value, fresh[key]), key
    proj = state["transformer.h.0.mlp.c_proj.weight"].std()  # set by its parent's rule: 0.03 / sqrt(2 x 2 layers)
    torch.testing.assert_close(proj, torch.tensor(0.015), rtol=0.05, atol=0)
    padded = in_memory(config={**CONFIGS["llama_tied"], "pad_token_id": 4}).network.lm_head.weight
    assert padded[4].abs().sum() == 0
    assert padded[5].abs().sum() > 0


def pretrained_on_ranks(path: str, name: str) -> torch.Tensor:
    model = on_meta(path=path, **arguments(name))
    shard(model, init_device_mesh("cpu", (dist.get_world_size(),)), "float32")
    model.to_empty(device="cpu")
    initialize(model, None, 0)
    with torch.no_grad():
        return model.eval()(tokens())


@pytest.mark.parametrize("name", ["llama_tied", "mixtral"])
def test_pretrained_weights_are_the_same_when_sharded(name: str, tmp_path: Path) -> None:
    oracle(name).save_pretrained(tmp_path)
    with torch.no_grad():
        expected = in_memory(path=str(tmp_path), **arguments(name))(tokens())
    for found in run_ranks(2, pretrained_on_ranks, str(tmp_path), name):
        torch.testing.assert_close(found, expected)


def train(given: dict[str, Any], chunked: bool = False, steps: int = 3) -> list[tuple[float, float]]:
    """(loss, norm) of each step on one batch of 8 sequences, shared by the ranks there are."""
    rank = dist.get_rank() if dist.is_initialized() else 0
    size = dist.get_world_size() if dist.is_initialized() else 1
    model = on_meta(**given)
    if size > 1:
        shard(model, init_device_mesh("cpu", (size,)), "float32")
    model.to_empty(device="cpu")
    initialize(model, None, 7)
    optimizer = torch.optim.AdamW(DecayGroups()(model), lr=3e-3, fused=True)
    scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
    world = World(rank=rank, local_rank=rank, size=size, device=torch.device("cpu"))
    loss = ChunkedCLMCrossEntropyLoss() if chunked else CLMCrossEntropyLoss()
    parts = assemble(model, loss, optimizer, scheduler, GradientClipper, world, "float32", False)
    ids = tokens(8, 16)
    inputs, targets = ids[:, :-1].clone(), ids[:, 1:].clone()
    if given.get("model_type") == "AutoModelForMaskedLM":
        hidden = torch.zeros_like(inputs, dtype=torch.bool)
        hidden[:, ::4] = True
        targets = inputs.masked_fill(~hidden, -100)
        inputs = inputs.masked_fill(hidden, 3)
    own = slice(rank * 8 // size, (rank + 1) * 8 // size)
    batch = ({"input_ids": inputs[own], "attention_mask": torch.ones_like(inputs[own])}, targets[own])
    results = [update(parts, [batch], step) for step in range(steps)]
    return [(result.mean_loss(), float(result.grad_norm)) for result in results]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama_tied", "bert"])
def test_trains_from_a_config_and_from_a_folder_on_any_number_of_ranks(name: str, tmp_path: Path) -> None:
    oracle(name).save_pretrained(tmp_path)
    quiet = {"attention_probs_dropout_prob": 0.0, "hidden_dropout_prob": 0.0} if name == "bert" else {}
    for source in ({"config": CONFIGS[name]}, {"path": str(tmp_path)}):
        given = {**source, **arguments(name), "overrides": quiet}
        lines = train(given)
        assert lines[-1][0] < lines[0][0] - 0.1
        for other in run_ranks(2, train, given):
            torch.testing.assert_close(torch.tensor(other), torch.tensor(lines), rtol=1e-4, atol=1e-5)


def test_a_loss_of_hidden_states_equals_the_plain_one() -> None:
    given = {"config": CONFIGS["llama_tied"]}
    torch.testing.assert_close(torch.tensor(train(given, chunked=True)), torch.tensor(train(given)))
    with pytest.raises(
        ConfigError,
        match=r"^BertForMaskedLM must end in one weight matrix for a loss of hidden states, without bias or adapter; "
        r"set train.loss = @CLMCrossEntropyLoss$",
    ):
        train({"config": CONFIGS["bert"], **arguments("bert")}, chunked=True)
    model = in_memory(config=CONFIGS["gemma2"], **arguments("gemma2"))
    with pytest.raises(ConfigError, match=r"^Gemma2ForCausalLM must give the output of its last matrix as logits .*it"):
        model(tokens(), head=F.linear)
    assert model(tokens()).shape == (3, 20, VOCAB)


@torch.no_grad()
def test_another_rule_can_initialise_it_in_part() -> None:
    model = on_meta(config=CONFIGS["llama"])
    model.weight_sources = []
    model.to_empty(device="cpu")
    ComposedInitializer(weight_init_type="plain", std=0.5)(model, 0)
    assert abs(float(model.network.lm_head.weight.std()) - 0.5) < 0.02
    assert torch.isfinite(model.eval()(tokens())).all()  # rotary frequencies are there, though nobody filled them


def test_text_is_sampled_by_full_forward_passes() -> None:
    model = in_memory(config=CONFIGS["gpt2"])
    expected = model.network.generate(
        tokens(1, 6), max_new_tokens=20, do_sample=False, eos_token_id=None, pad_token_id=0
    )
    assert torch.equal(generate(model, tokens(1, 6), 20, temperature=0), expected)
    assert generate(model, tokens(2, 40), 20).shape == (2, 60)  # beyond seq_len
    assert generate(in_memory(config=CONFIGS["bert"], **arguments("bert")), tokens(1, 6), 3).shape == (1, 9)


def test_sampling_compiles_nothing() -> None:
    compiled: list[int] = []

    def backend(graph: Any, inputs: Any) -> Any:
        compiled.append(len(inputs))
        return graph

    model = in_memory(config=CONFIGS["llama"])
    expected = generate(model, tokens(1, 6), 4)
    for block in model.blocks:
        block.compile(backend=backend, dynamic=False)
    assert torch.equal(generate(model, tokens(1, 6), 4), expected)
    assert compiled == []
    with torch.no_grad():
        model(tokens(1, 6))
    assert compiled


def test_counts() -> None:
    model = on_meta(config=CONFIGS["llama_tied"])
    assert model.num_parameters()["non_embedding"] == model.num_parameters()["total"] - VOCAB * 32
    assert model.flops_per_token(16) == 6 * model.num_parameters()["total"] + 12 * 2 * 32 * 16
    assert model.flops_per_token() == 6 * model.num_parameters()["total"] + 12 * 2 * 32 * SEQ_LEN
    untied = on_meta(config=CONFIGS["llama"])
    assert untied.flops_per_token(16, "causal_half") == 6 * (untied.num_parameters()["total"] - VOCAB * 32) + (
        6 * 2 * 32 * 16
    )
    experts = on_meta(config=CONFIGS["mixtral"])
    inside = sum(p.numel() for name, p in experts.named_parameters() if ".experts." in name)
    used = experts.num_parameters()["total"] - VOCAB * 32 - inside // 2  # 2 of 4 experts
    assert experts.flops_per_token(16) == 6 * used + 12 * 2 * 32 * 16


def refused(match: str, **given: Any) -> None:
    with pytest.raises(ConfigError, match=match):
        on_meta(**given)


def test_wrong_sources_are_refused(tmp_path: Path) -> None:
    llama = CONFIGS["llama"]
    refused(r"^path \(None\) and config \(None\) must be exactly one; path loads weights from a folder, config builds")
    refused(r"^path \('x'\) and config \(a mapping\) must be exactly one", path="x", config=llama)
    refused(
        r"^path \('openai/gpt2'\) must be an existing local folder; there is no /.*/openai/gpt2; if openai/gpt2 is a "
        r"name of the hub, download it first, since modlib downloads nothing: "
        r"hf download openai/gpt2 --local-dir gpt2$",
        path="openai/gpt2",
    )
    refused(rf"^path \('{tmp_path}'\) must have a config.json of transformers", path=str(tmp_path))
    on_meta(config=llama).network.config.save_pretrained(tmp_path)
    refused(
        rf"^path \('{tmp_path}'\) must hold weights \(model.safetensors, .*\); config = '{tmp_path}' builds the model "
        "with random ones$",
        path=str(tmp_path),
    )
    assert on_meta(config=str(tmp_path)).dim == on_meta(config=str(tmp_path / "config.json")).dim == 32
    (tmp_path / "config.json").write_text(json.dumps({**llama, "quantization_config": {"quant_method": "gptq"}}))
    refused(rf"^config \('{tmp_path}'\) must not be quantized \(quantization_config\); use", config=str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    refused(r"must have a config.json with a model_type$", config=str(tmp_path))


def test_wrong_fields_are_refused() -> None:
    llama = CONFIGS["llama"]
    refused(r"^config must have a model_type, such as 'llama'", config={"vocab_size": 3})
    refused(
        r"^config: model_type \('lama'\) must be an architecture of transformers; did you mean 'llama'\?$",
        config={"model_type": "lama"},
    )
    refused(
        r"^config: 'hidden_sise' must be a field of LlamaConfig; did you mean 'hidden_size'\?\n"
        r"config: 'num_layer' must be a field of LlamaConfig; did you mean",
        config={**llama, "hidden_sise": 3, "num_layer": 2},
    )
    refused(r"^overrides: 'dropuot' must be a field", config=llama, overrides={"dropuot": 0.1})
    refused(r"^config must be a valid LlamaConfig: .*vocab_size.* expected int", config={**llama, "vocab_size": "3"})
    refused(
        r"^model_type \('AutoModelForMaskedLM'\) must fit the architecture 'llama', of which transformers has no such",
        config=llama,
        model_type="AutoModelForMaskedLM",
    )
    refused(r"^model_type \('AutoModel'\) must be 'AutoModelForCausalLM' or", config=llama, model_type="AutoModel")
    refused(
        r"^attn_implementation \('mine'\) must be one that the architecture 'llama' supports; set it to 'eager'$",
        config=llama,
        attn_implementation="mine",
    )
    refused(
        r"^seq_len \(49\) must be at most what the positions of LlamaConfig allow \(48\); shorten it, or set overrides",
        config=llama,
        seq_len=49,
    )
    refused(r"^seq_len \(0\) must be at least 1", config=llama, seq_len=0)
    longer = on_meta(config=llama, seq_len=64, overrides={"max_position_embeddings": 64, "attention_dropout": 0.5})
    assert (longer.seq_len, longer.network.config.attention_dropout) == (64, 0.5)


def test_no_traceback_comes_out_of_an_architecture() -> None:
    """Some check by assert, some not at all."""
    given = {**SIZES, "vocab_size": 4096}
    for name, default in (("phi3", 32000), ("glm4", 151329)):
        refused(
            rf"^pad_token_id \({default}\) must be below vocab_size \(4096\); set it to None$",
            config={"model_type": name, **given},
        )
    assert on_meta(config={"model_type": "phi3", **given, "pad_token_id": None}).vocab_size == 4096
    refused(
        r"^config \('llama'\) must describe a model that can be built: 'nope'$",
        config={**CONFIGS["llama"], "hidden_act": "nope"},
    )


def test_architectures_without_one_language_model_are_refused() -> None:
    refused(
        r"^model_type \('musicgen'\) must be an architecture with one language model: Multiple valid text configs",
        config={"model_type": "musicgen"},
    )
    refused(
        r"^config \('esm'\) must give vocab_size as a whole number; set it, or choose another architecture where it",
        config={"model_type": "esm"},
        model_type="AutoModelForMaskedLM",
    )
    refused(r"^config \('blt'\) must give num_hidden_layers, hidden_size as a whole", config={"model_type": "blt"})


def test_attention_is_one_that_the_architecture_has() -> None:
    """Each of these refuses 'sdpa' in transformers 5.23, or takes it."""
    small = {"vocab_size": VOCAB, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    given = {"hidden_size": 32, "num_hidden_layers": 1}
    eager = {
        "gemma2": {**SIZES, "head_dim": 8},
        "mamba": given,
        "bloom": {"hidden_size": 32, "n_layer": 1, "n_head": 4},
    }
    for name, fields in eager.items():
        model = on_meta(config={"model_type": name, **fields, **small}, seq_len=16)
        assert model.network.config._attn_implementation == "eager"
        assert model.plan_notes() == [f"attn_implementation: 'eager', as '{name}' has no 'sdpa' in transformers"]
    model = on_meta(config=CONFIGS["llama"])
    assert (model.network.config._attn_implementation, model.plan_notes()) == ("sdpa", [])


def test_fields_that_only_the_architectures_code_names_are_taken(tmp_path: Path) -> None:
    """The published Qwen3-30B-A3B sets head_dim, which Qwen3MoeConfig does not declare."""
    given = {
        "model_type": "qwen3_moe", **SIZES, "num_key_value_heads": 2, "num_experts": 4, "moe_intermediate_size": 16
    }  # fmt: skip
    (tmp_path / "q3.json").write_text(json.dumps({**given, "head_dim": 16, "published_by": "them"}))
    mapping = on_meta(config={**given, "head_dim": 16})
    assert mapping.network.model.layers[0].self_attn.q_proj.weight.shape == (64, 32)
    shapes = [
        {n: t.shape for n, t in m.state_dict().items()} for m in (mapping, on_meta(config=str(tmp_path / "q3.json")))
    ]
    assert shapes[0] == shapes[1]
    refused(
        r"^config: 'head_dimm' must be a field of Qwen3MoeConfig; did you mean 'head_dim'\?$",
        config={**given, "head_dimm": 16},
    )
    (tmp_path / "q3.json").write_text(json.dumps({**given, "head_dimm": 16}))
    refused(
        rf"^config \('{tmp_path}/q3.json'\): 'head_dimm' must be a field of Qwen3MoeConfig; did you mean 'head_dim'\?$",
        config=str(tmp_path / "q3.json"),
    )


def test_a_folder_whose_config_holds_infinity_is_read_as_transformers_reads_it(tmp_path: Path) -> None:
    config = transformers.AutoConfig.for_model(
        "mamba2",
        vocab_size=VOCAB,
        hidden_size=16,
        state_size=8,
        num_hidden_layers=1,
        num_heads=4,
        head_dim=8,
        n_groups=2,
    )
    theirs = transformers.AutoModelForCausalLM.from_config(config)
    theirs.save_pretrained(tmp_path)
    assert '"__float__": "Infinity"' in (tmp_path / "config.json").read_text()
    ours = in_memory(path=str(tmp_path), seq_len=16)
    read = transformers.AutoConfig.from_pretrained(tmp_path)
    assert ours.network.config.time_step_limit == read.time_step_limit == [0.0, float("inf")]
    with torch.no_grad():
        assert torch.equal(ours(tokens(2, 8)), theirs.eval()(tokens(2, 8)).logits)
    assert on_meta(config=str(tmp_path), seq_len=16).network.config.time_step_limit == [0.0, float("inf")]
    (tmp_path / "generation_config.json").write_text("{")
    refused(r"must have a generation_config.json that transformers reads, or none: ", path=str(tmp_path), seq_len=16)


def test_a_loss_of_hidden_states_is_refused_where_logits_are_worked_on() -> None:
    """xLSTM indexes them, which a loss cannot bear."""
    model = in_memory(config={"model_type": "xlstm", "vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 1,
                              "num_heads": 2}, seq_len=16)  # fmt: skip
    with pytest.raises(ConfigError, match=r"^xLSTMForCausalLM must give the output of its last matrix as logits for a"):
        model(tokens(1, 8), head=lambda hidden, weight: (hidden @ weight.T).sum())


class Malicious:
    """Pickles as a call that leaves a trace."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.trace),))


@torch.no_grad()
def test_code_of_a_folder_is_never_run(tmp_path: Path) -> None:
    """Not what auto_map names, beside an architecture that transformers knows or without one; nor a pickle's."""
    trace = tmp_path / "ran"
    theirs = oracle("llama").eval()
    theirs.save_pretrained(tmp_path)
    (tmp_path / "evil.py").write_text(f"import os\nos.mkdir({str(trace)!r})\nclass Evil: pass\n")
    config = json.loads((tmp_path / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "evil.Evil", "AutoModelForCausalLM": "evil.Evil"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert torch.equal(in_memory(path=str(tmp_path))(tokens()), theirs(tokens()).logits)
    (tmp_path / "config.json").write_text(json.dumps({**config, "model_type": "0000"}))
    refused(r"must be an architecture of transformers; such as .*; code of a hub is not run$", path=str(tmp_path))

    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").unlink()
    torch.save({"lm_head.weight": Malicious(trace)}, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"and hold something that would run code when loaded; save them as"):
        in_memory(path=str(tmp_path))
    refused(
        r"^attn_implementation \('kernels-community/attn'\) must be a name without '/', since a kernel of the hub",
        config=CONFIGS["llama"],
        attn_implementation="kernels-community/attn",
    )
    assert not trace.exists()


def test_a_sequence_beyond_seq_len_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"^sequence length \(20\) must be at most HuggingFacePretrainedModel.seq_len "
    ):
        in_memory(config=CONFIGS["llama"], seq_len=8)(tokens())


def test_weights_that_do_not_fit_are_named(tmp_path: Path) -> None:
    theirs = oracle("bert")
    theirs.bert.save_pretrained(tmp_path / "base")  # without the head
    with pytest.raises(
        CheckpointError,
        match=r"must set every parameter of BertForMaskedLM; .*\n  cls.predictions.* is not in the folder",
    ):
        in_memory(path=str(tmp_path / "base"), **arguments("bert"))
    theirs.save_pretrained(tmp_path / "whole")
    with pytest.raises(
        CheckpointError, match=r"\n  .*word_embeddings.weight is \(97, 32\) in the folder and \(101, 32\)"
    ):
        in_memory(path=str(tmp_path / "whole"), overrides={"vocab_size": 101}, **arguments("bert"))
    oracle("llama").save_pretrained(tmp_path / "untied")
    with pytest.raises(
        CheckpointError, match=r"lm_head.weight .* must be equal, as the config ties them; set overrides"
    ):
        in_memory(path=str(tmp_path / "untied"), overrides={"tie_word_embeddings": True})
    (tmp_path / "untied" / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match=r"^weights in .* cannot be read: "):
        in_memory(path=str(tmp_path / "untied"))


def test_activations_are_estimated_as_those_of_the_same_transformer() -> None:
    fields = {"model_type": "llama", "vocab_size": 96, "hidden_size": 32, "intermediate_size": 80, "head_dim": 8}
    fields |= {"num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2}
    with torch.device("meta"):
        model = HuggingFacePretrainedModel(config=fields, seq_len=24)
        ours = GPT2(vocab_size=96, seq_len=24, num_layers=3, num_heads=4, num_kv_heads=2, dim=32, ffn_dim=80,
                    activation="swiglu", position="rotary")  # fmt: skip
    assert model.activation_bytes(5, 16, 2) == ours.activation_bytes(5, 16, 2)
    assert model.activation_bytes(1) == ours.activation_bytes(1)
