"""Modalities' training configs as gin files: each is parsed, checked and built on meta, with the values it had."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from modlib.cli.start.planning import check_plan, planned
from modlib.config import Config, load
from modlib.migration.modalities import migrated
from modlib.migration.rows import swiglu_hidden
from modlib.runtime.errors import ConfigError
from tests.cli.commands import modlib

HERE = Path(__file__).parent
SHAPES = sorted(path.stem for path in HERE.glob("*.yaml"))


def gin_of(name: str, folder: Path) -> Path:
    """The gin file that the command writes."""
    out = folder / f"{name}.gin"
    done = modlib("migrate", HERE / f"{name}.yaml", out)
    assert f"modlib train --gin_file {out} --dry_run" in done.stdout
    return out


def config_of(name: str, folder: Path) -> Config:
    return load([gin_of(name, folder)])


@pytest.mark.parametrize("name", SHAPES)
def test_every_shape_is_checked_and_built_on_meta(name: str, tmp_path: Path) -> None:
    config, place, _ = planned(config_of(name, tmp_path), "local", tmp_path / "runs", None)
    plan = check_plan(config, place, without_data=True)
    assert plan.parameters["total"] > 10_000


def test_there_is_a_shape_of_each_published_kind() -> None:
    assert SHAPES == ["coca", "fsdp1_gpt2", "fsdp2_gpt2", "warm_start"]


EXPECTED: dict[str, dict[str, Any]] = {
    "fsdp2_gpt2": {
        "train.num_steps": 40, "train.micro_batch_size": 4, "train.grad_accum_steps": 2, "train.precision": "bfloat16",
        "train.log_every": 5, "GPT2.seq_len": 64, "GPT2.num_kv_heads": 2, "GPT2.position": "rotary",
        "GPT2.activation": "swiglu", "GPT2.ffn_dim": 256, "GPT2.norm": "@RMSNorm", "RMSNorm.eps": 1e-5,
        "GPT2.tie_embeddings": False, "AdamW.lr": 1e-4, "AdamW.betas": (0.9, 0.95), "AdamW.weight_decay": 0.1,
        "DecayGroups.decay_embeddings": False, "OneCycleLR.max_lr": 6e-4, "OneCycleLR.total_steps": 40,
        "OneCycleLR.cycle_momentum": False, "GradientClipper.max_norm": 1.0, "ShuffledSampler.seed": 42,
        "train/PackedDataset.path": "./data/train.packed", "val/PackedDataset.reuse_last_target": False,
        "val/Evaluator.every": 10, "SaveEveryKSteps.k": 20, "WandB.mode": "offline",
        "ComposedInitializer.num_layers": 2,
    },
    "fsdp1_gpt2": {
        "train.num_steps": 16, "GPT2.position": "learned", "GPT2.norm": "@LayerNorm", "LayerNorm.eps": 1e-6,
        "GPT2.tie_embeddings": True, "Adam.lr": 1e-3, "ConstantLR.factor": 0.5, "ComposedInitializer.std": "auto",
        "ComposedInitializer.dim": 128, "LoggingOnlyClipper.norm_type": "inf", "SaveEveryKSteps.k": 8,
        "DecayGroups.decay_embeddings": True, "train.evaluators": (),
    },
    "warm_start": {
        "LinearWarmupCosine.warmup_steps": 4, "LinearWarmupCosine.num_steps": 40,
        "LinearWarmupCosine.min_lr_ratio": 0.1, "SaveKMostRecent.k": 3,
    },
    "coca": {
        "CoCa.image_size": 32, "CoCa.vision_layers": 2, "CoCa.num_vision_queries": 8, "CoCa.multimodal_layers": 2,
        "StepLR.step_size": 2, "train.collate": "@CoCaCollator", "CoCa.seq_len": 16,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", EXPECTED)
def test_values_are_those_of_the_yaml(name: str, tmp_path: Path) -> None:
    resolved = config_of(name, tmp_path).resolved
    found = {key: tuple(value) if isinstance(value := resolved[key], list) else value for key in EXPECTED[name]}
    assert found == EXPECTED[name]


def test_each_value_names_its_line_and_each_difference_its_reason(tmp_path: Path) -> None:
    text = gin_of("fsdp2_gpt2", tmp_path).read_text()
    yaml = (HERE / "fsdp2_gpt2.yaml").read_text().splitlines()
    line = next(line for line in text.splitlines() if line.startswith("GPT2.num_layers"))
    assert yaml[int(line.split("# line ")[1].split(":")[0]) - 1].strip() == "n_layer: 2"
    said = modlib("migrate", HERE / "fsdp2_gpt2.yaml", tmp_path / "again.gin").stderr
    for note in (
        "train_dataset.config.raw_data_path: convert it first: modlib data convert ./data/train.pbin",
        "device_mesh.config.tensor_parallel_degree: modlib shards along the data-parallel axis alone today",
        "loss_fn: the mean is over all tokens of the global batch, not of each micro-batch's mean",
    ):
        assert note in said
        assert note in text
    assert "no field" not in said


def test_what_is_unknown_is_told_and_never_dropped_in_silence(tmp_path: Path) -> None:
    text = (HERE / "fsdp1_gpt2.yaml").read_text()
    text = text.replace("    bias: true\n", "    bias: true\n    new_field: 3\n")
    text = text.replace("variant_key: constant_lr", "variant_key: cyclic")
    (tmp_path / "a.yaml").write_text(text)
    notes = [note for _, _, note in migrated(tmp_path / "a.yaml").notes]
    assert "model/gpt2 has no field new_field that modlib knows" in notes
    assert "scheduler/cyclic has no counterpart" in notes


def test_an_output_is_not_replaced_unless_asked(tmp_path: Path) -> None:
    out = gin_of("coca", tmp_path)
    refused = modlib("migrate", HERE / "coca.yaml", out, code=2)
    assert f"OUT ({out}) must be a new file; name another, or replace it with --overwrite" in refused.stderr
    modlib("migrate", HERE / "coca.yaml", out, "--overwrite")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("- 1\n", "must be a YAML mapping, as a training config is"),
        ("a: [1\n", "must be YAML: "),
        ("a: !!python/tuple [1]\n", "line 1: a must be plain YAML, and has the tag tag:yaml.org,2002:python/tuple"),
        ("model: {}\n", "the YAML must have `settings`, as a training config of Modalities has; give one"),
        ("settings: {}\nmodel: {instance_key: model}\n", "line 2: model refers to itself by model -> model"),
        ("settings: {}\n", "model (none) must be gpt2, huggingface_pretrained_model or coca to be migrated"),
    ],
)
def test_what_is_no_training_config_is_refused(text: str, problem: str, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        migrated(tmp_path / "a.yaml")
    assert problem in str(caught.value)


def test_the_hidden_size_of_a_swiglu_is_modalities_own() -> None:
    sizes = {2048: 1536, 3072: 2048, 4096: 2816, 8192: 5632, 128: 256, 16384: 11008}
    assert {size: swiglu_hidden(size) for size in sizes} == sizes
