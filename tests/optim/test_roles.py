"""What a parameter is for, and that neither its axes nor its numbers decide it."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from modlib.models.gpt2 import GPT2
from modlib.models.huggingface import HuggingFacePretrainedModel
from modlib.models.lora import LoRAModel
from modlib.optim.groups import DecayGroups
from modlib.optim.muon import MuonGroups
from modlib.optim.roles import keep_marks, num_non_embedding, parameter_roles
from tests.workers import run_ranks

SIZES = {"vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 2, "max_position_embeddings": 64}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "intermediate_size": 48}
EXPERTS = {
    "num_experts": 4,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
}


class Marked(nn.Module):
    """A layer whose author marks a matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Linear(4, 4, bias=False)
        self.decay_rates = nn.Parameter(torch.zeros(4, 4))
        self.decay_rates._no_weight_decay = True  # type: ignore[attr-defined]


class Kinds(nn.Module):
    """Of each kind that a shape alone does not tell."""

    vocab_size = 6

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(6, 6)
        self.positions = nn.Parameter(torch.zeros(1, 5, 6))
        self.mix = nn.Parameter(torch.zeros(1, 1, 6))
        self.square = nn.Linear(6, 6)  # as many rows as there are token ids
        self.score = nn.Linear(6, 1)
        self.attention = nn.MultiheadAttention(6, 2)
        self.patches = nn.Conv2d(3, 6, 2)
        self.short = nn.Conv1d(6, 6, 3, groups=6)
        self.norm = nn.LayerNorm((5, 6))
        self.normed = nn.utils.parametrizations.weight_norm(nn.Linear(6, 4, bias=False))
        self.head = nn.Linear(6, 6, bias=False)


def wrapped(model_type: str, **fields: Any) -> Any:
    pytest.importorskip("transformers")
    with torch.device("meta"):
        return HuggingFacePretrainedModel(
            config={"model_type": model_type, **fields}, seq_len=16, attn_implementation="eager"
        )


def mixture(model_type: str, **fields: Any) -> Any:
    """A tiny model of transformers with experts; of the sizes, those that the architecture knows."""
    transformers = pytest.importorskip("transformers")
    known = transformers.AutoConfig.for_model(model_type).to_dict()
    sizes = {name: value for name, value in {**SIZES, **HEADS, **EXPERTS}.items() if name in known}
    config = transformers.AutoConfig.for_model(model_type, **sizes, **fields)
    model = nn.Module()
    with torch.device("meta"):
        model.network = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    return model


def by_role(model: nn.Module) -> dict[str, set[str]]:
    """Role -> names without the number of a block."""
    found: dict[str, set[str]] = {}
    for name, role in parameter_roles(model).items():
        found.setdefault(role, set()).add(re.sub(r"^.*\.\d+\.", "", name.removeprefix("network.")))
    return found


def names(model: nn.Module, groups: list[dict[str, Any]], wanted: Any) -> set[str]:
    chosen = {id(p) for group in groups if wanted(group) for p in group["params"]}
    return {
        re.sub(r"^.*\.\d+\.", "", name.removeprefix("network."))
        for name, p in model.named_parameters()
        if id(p) in chosen
    }


def decayed(model: nn.Module) -> set[str]:
    return names(model, DecayGroups()(model), lambda group: "weight_decay" not in group)


def muon(model: nn.Module, algorithm: str) -> set[str]:
    return names(model, MuonGroups()(model), lambda group: group["algorithm"] == algorithm)


def test_layers_names_and_shapes_say_what_a_parameter_is() -> None:
    assert by_role(Kinds()) == {
        "embedding": {"tokens.weight"},
        "table": {"positions"},
        "matrix": {
            "square.weight",
            "score.weight",
            "attention.in_proj_weight",
            "attention.out_proj.weight",
            "normed.parametrizations.weight.original1",
        },
        "vector": {"mix", "norm.weight", "normed.parametrizations.weight.original0"},
        "bias": {
            "square.bias", "score.bias", "attention.in_proj_bias", "attention.out_proj.bias", "patches.bias",
            "short.bias", "norm.bias",
        },
        "convolution": {"patches.weight"},
        "depthwise_convolution": {"short.weight"},
        "output": {"head.weight"},
    }  # fmt: skip
    model = Kinds()
    assert not {"mix", "norm.weight", "short.weight", "attention.in_proj_bias"} & decayed(model)
    assert {"positions", "score.weight", "patches.weight", "head.weight", "tokens.weight"} < decayed(model)
    assert muon(model, "muon") == by_role(model)["matrix"] - {"score.weight"}


def test_the_output_is_the_head_and_no_matrix_of_as_many_rows() -> None:
    model = GPT2(vocab_size=16, seq_len=8, num_layers=1, num_heads=2, dim=16, tie_embeddings=False)
    assert by_role(model)["output"] == {"lm_head.weight"}
    assert "attention.out.weight" in muon(model, "muon")
    tied = GPT2(vocab_size=16, seq_len=8, num_layers=1, num_heads=2, dim=16)
    assert "output" not in by_role(tied)
    assert num_non_embedding(tied) == num_non_embedding(model)


def test_adapters_of_rank_one_are_matrices() -> None:
    build = lambda: GPT2(vocab_size=31, seq_len=8, num_layers=1, num_heads=2, dim=8)  # noqa: E731
    model = LoRAModel(build, r=1, alpha=1.0, targets=["qkv", "token_embedding"])
    assert {"attention.qkv.lora_A", "attention.qkv.lora_B"} < decayed(model)
    assert by_role(model)["embedding"] >= {"token_embedding.lora_A", "token_embedding.lora_B"}


def test_state_spaces() -> None:
    model = wrapped("mamba", vocab_size=97, hidden_size=32, num_hidden_layers=2, state_size=4)
    assert by_role(model) == {
        "embedding": {"backbone.embeddings.weight"},
        "state_space": {"mixer.A_log", "mixer.D"},
        "depthwise_convolution": {"mixer.conv1d.weight"},
        "matrix": {f"mixer.{name}_proj.weight" for name in ("in", "x", "dt", "out")},
        "bias": {"mixer.conv1d.bias", "mixer.dt_proj.bias"},
        "vector": {"norm.weight", "backbone.norm_f.weight"},
    }
    assert {name for name in decayed(model) if "mixer" in name} == by_role(model)["matrix"]
    assert muon(model, "muon") == by_role(model)["matrix"]


def test_experts_biases_and_routers() -> None:
    model = mixture("gpt_oss", layer_types=["full_attention"] * 2)
    roles = by_role(model)
    assert roles["experts"] == {"mlp.experts.gate_up_proj", "mlp.experts.down_proj"}
    assert roles["router"] == {"mlp.router.weight"}
    assert {"mlp.experts.gate_up_proj_bias", "mlp.experts.down_proj_bias", "mlp.router.bias"} < roles["bias"]
    assert not roles["bias"] & decayed(model)
    assert muon(model, "muon_of_each") == roles["experts"]
    assert muon(model, "muon") == {f"self_attn.{name}_proj.weight" for name in "qkvo"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model_type", "fields", "routers"),
    [
        ("mixtral", {}, {"mlp.gate.weight"}),
        ("qwen3_moe", {}, {"mlp.gate.weight"}),
        ("olmoe", {}, {"mlp.gate.weight"}),
        ("minimax", {}, {"mlp.gate.weight"}),
        ("llama4_text", {"intermediate_size_mlp": 48}, {"feed_forward.router.weight"}),
        (
            "qwen3_next",
            {"linear_num_value_heads": 2, "linear_num_key_heads": 2},
            {"mlp.gate.weight", "mlp.shared_expert_gate.weight"},
        ),
        ("jamba", {"mamba_d_state": 4}, {"feed_forward.router.weight"}),
    ],
)
def test_routers_of_many_families_are_no_matrices_for_muon(model_type: str, fields: Any, routers: set[str]) -> None:
    model = mixture(model_type, **fields)
    roles = by_role(model)
    assert roles["router"] == routers
    assert {name.rpartition(".")[2] for name in roles["experts"]} == {"gate_up_proj", "down_proj"}
    assert not (roles["router"] | roles.get("state_space", set())) & muon(model, "muon")
    assert routers < decayed(model)
    assert muon(model, "muon_of_each") == roles["experts"]


@pytest.mark.slow
def test_time_mixing_vectors_do_not_decay() -> None:
    model = wrapped("rwkv", vocab_size=97, hidden_size=32, num_hidden_layers=2, context_length=64)
    mixes = {name for name in by_role(model)["vector"] if "time_mix" in name}
    assert len(mixes) == 5
    assert not mixes & decayed(model)


@pytest.mark.parametrize(
    ("layers", "dim", "heads", "rows", "published"),
    [
        (6, 512, 8, 50304, 18_915_328),
        (12, 768, 12, 50304, 85_056_000),
        (24, 1024, 16, 50304, 302_311_424),
        (16, 2048, 8, 50304, 805_736_448),
        (36, 5120, 40, 50688, 11_327_027_200),
    ],
)
def test_pythias_published_counts_without_embeddings(
    layers: int, dim: int, heads: int, rows: int, published: int
) -> None:
    sizes = {
        "hidden_size": dim,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": 4 * dim,
    }
    model = wrapped("gpt_neox", vocab_size=rows, tie_word_embeddings=False, **sizes)
    assert model.num_parameters()["non_embedding"] == published
    assert model.num_parameters()["total"] == published + 2 * rows * dim


def marked_groups() -> list[list[str]]:
    with torch.device("meta"):
        model = Marked()
    keep_marks(model)
    if dist.is_initialized():
        fully_shard(model, mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
    model.to_empty(device="cpu")
    assert not hasattr(model.decay_rates, "_no_weight_decay")
    return [sorted(names(model, [group], lambda _: True)) for group in DecayGroups()(model)]


def test_an_authors_mark_outlives_memory_and_sharding() -> None:
    expected = [["map.weight"], ["decay_rates"]]
    assert marked_groups() == expected
    assert run_ranks(2, marked_groups) == [expected, expected]
