"""LoRA on whole models: against peft, through training, checkpoints, sharding and merging."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh

from modlib.checkpointing.loading import load, open_checkpoint, restore_newest, verify
from modlib.checkpointing.rng import capture_rng, restore_rng
from modlib.checkpointing.writing import save
from modlib.distributed.clipping import GradientClipper
from modlib.distributed.fsdp import shard
from modlib.distributed.process_group import World
from modlib.models.coca import CoCa
from modlib.models.gpt2 import GPT2
from modlib.models.initialization import ComposedInitializer
from modlib.models.lora import LoRAModel, merged_state_dict
from modlib.models.weights import add_weights, initialize, named_state
from modlib.nn.lora_layers import is_layer
from modlib.nn.losses import CLMCrossEntropyLoss
from modlib.optim.groups import DecayGroups
from modlib.runtime.errors import CheckpointError, ConfigError
from modlib.training.parts import Parts, assemble
from modlib.training.step import update
from tests.training.test_plain_loop import SEQ_LEN, VOCAB, batch
from tests.workers import run_ranks

ATTENTION = ["attention.qkv", "attention.out"]


def gpt2(**sizes: Any) -> GPT2:
    return GPT2(**{"vocab_size": VOCAB, "seq_len": SEQ_LEN, "num_layers": 2, "num_heads": 2, "dim": 32} | sizes)


def untied() -> GPT2:
    return gpt2(tie_embeddings=False)


def in_memory(build: Callable[[], nn.Module], seed: int = 7) -> Any:
    """A model as training makes it."""
    with torch.device("meta"):
        model = build()
    model.to_empty(device="cpu")
    initialize(model, ComposedInitializer(), seed)
    return model


def lora(model: Callable[[], nn.Module] = gpt2, **settings: Any) -> nn.Module:
    return LoRAModel(model, **{"r": 4, "alpha": 8.0, "targets": ATTENTION} | settings)


def parts_of(model: nn.Module, precision: str = "float32", compiled: bool = False, lr: float = 1e-2) -> Parts:
    rank, size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    optimizer = torch.optim.AdamW(DecayGroups()(model), lr=lr, eps=1e-4, fused=True)
    scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
    world = World(rank=rank, local_rank=rank, size=size, device=torch.device("cpu"))
    return assemble(model, CLMCrossEntropyLoss(), optimizer, scheduler, GradientClipper, world, precision, compiled)


def count_up(step: int) -> tuple[Tensor, Tensor]:
    """Every token is the one before plus one."""
    start = torch.randint(0, VOCAB, (12, 1), generator=torch.Generator().manual_seed(step))
    tokens = (start + torch.arange(SEQ_LEN + 1)) % VOCAB
    return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()


def train(
    parts: Parts, steps: range, accumulate: int = 1, data: Callable[[int], tuple[Tensor, Tensor]] = batch
) -> list[tuple[float, float]]:
    """(loss, norm) of each step of global batches of 12 sequences."""
    size, rank, lines = parts.world.size, parts.world.rank, []
    micro = 12 // size // accumulate
    for step in steps:
        inputs, targets = data(step)
        own = [slice((n * size + rank) * micro, (n * size + rank + 1) * micro) for n in range(accumulate)]
        result = update(parts, [(inputs[part], targets[part]) for part in own], step)
        lines.append((result.mean_loss(), float(result.grad_norm)))
    return lines


def bits(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in named_state(model).items()}


def equal(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


# ------------------------------------------------------------------------------------------------- the model it makes


def test_it_begins_as_the_plain_model_and_keeps_its_names() -> None:
    plain, model = in_memory(gpt2), in_memory(lora)
    assert isinstance(model, GPT2)
    state = bits(model)
    adapters = {name for name in state if "lora_" in name}
    assert adapters == {
        f"blocks.{i}.attention.{layer}.lora_{ab}" for i in (0, 1) for layer in ("qkv", "out") for ab in "AB"
    }
    assert equal({name: state[name] for name in state if name not in adapters}, bits(plain))
    tokens = batch(0)[0]
    assert torch.equal(model(tokens), plain(tokens))
    plain.load_state_dict(merged_state_dict(model))
    assert torch.equal(model(tokens), plain(tokens))
    model.load_state_dict(plain.state_dict(), strict=False)
    a = state["blocks.1.attention.qkv.lora_A"]
    assert a.std() == pytest.approx((1 / 3 / 32) ** 0.5, rel=0.15)  # of a uniform distribution in 1 / sqrt(32)
    assert a.abs().max() <= 32**-0.5
    assert not state["blocks.1.attention.qkv.lora_B"].any()


def test_adapters_are_a_function_of_seed_and_name() -> None:
    once, again, other = in_memory(lora), in_memory(lambda: lora(targets=["qkv"])), in_memory(lora, seed=8)
    name = "blocks.1.attention.qkv.lora_A"
    assert torch.equal(bits(once)[name], bits(again)[name])
    assert not torch.equal(bits(once)[name], bits(other)[name])
    assert not torch.equal(bits(once)[name], bits(once)["blocks.0.attention.qkv.lora_A"])
    at_once = lora()  # a model that has memory gets them at once
    assert torch.equal(bits(at_once)[name], bits(in_memory(lora, seed=0))[name])


def test_only_adapters_are_trained_and_counted() -> None:
    model = in_memory(lora)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {name for name in bits(model) if "lora_" in name}
    counts, plain = model.num_parameters(), gpt2().num_parameters()
    assert counts["trainable"] == 2 * (4 * (32 + 96) + 4 * (32 + 32))
    assert counts["total"] == plain["total"] + counts["trainable"]
    assert sum(count for _, count in model.parameter_table()) == counts["total"]
    before = bits(model)
    train(parts_of(model), range(3))
    changed = {name for name, tensor in bits(model).items() if not torch.equal(tensor, before[name])}
    assert changed == trained


@pytest.mark.parametrize(
    ("bias", "biases"),
    [
        ("none", set()),
        ("lora_only", {f"blocks.{i}.attention.{layer}.bias" for i in (0, 1) for layer in ("qkv", "out")}),
        ("all", {name for name, _ in gpt2().named_parameters() if name.endswith("bias")}),
    ],
)
def test_biases_are_trained_by_the_policy(bias: str, biases: set[str]) -> None:
    model = in_memory(lambda: lora(bias=bias))
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {name for name in trained if "lora_" not in name} == biases
    train(parts_of(model), range(2))
    plain = gpt2()
    plain.load_state_dict(merged_state_dict(model))  # trained biases are in the merged weights
    torch.testing.assert_close(plain(batch(0)[0]), model(batch(0)[0]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        (["qkv"], ["blocks.0.attention.qkv", "blocks.1.attention.qkv"]),
        (["0.attention.qkv"], ["blocks.0.attention.qkv"]),
        (["blocks.1.feed_forward.up"], ["blocks.1.feed_forward.up"]),
        ([r"blocks\.0\..*"], [f"blocks.0.{n}" for n in ("attention.qkv", "attention.out", "feed_forward.up",
                                                        "feed_forward.down")]),
        (["(up|down)", "up"], [f"blocks.{i}.feed_forward.{n}" for i in (0, 1) for n in ("up", "down")]),
    ],
)  # fmt: skip
def test_targets_are_regular_expressions_of_the_end_of_a_name(targets: list[str], expected: list[str]) -> None:
    model = lora(targets=targets)
    found = [name.removesuffix(".lora_A") for name, _ in model.named_parameters() if name.endswith("lora_A")]
    assert found == expected


@pytest.mark.parametrize(
    ("settings", "problems"),
    [
        (
            {"r": 0, "alpha": 0.0, "dropout": 1.0, "bias": "some", "targets": "qkv"},
            [
                "r (0) must be at least 1; 8 is usual",
                "alpha (0.0) must be above 0; r or 2 r is usual",
                "dropout (1.0) must be in [0, 1); 0 turns it off",
                "bias ('some') must be 'none', 'all' or 'lora_only'",
                "targets ('qkv') must be a list; write ['qkv']",
            ],
        ),
        ({"targets": []}, ["targets ([]) must name at least one layer, such as 'q_proj'"]),
        (
            {"targets": ["(qkv"]},
            ["targets ('(qkv') must be a regular expression: missing ), unterminated subpattern at position 0"],
        ),
        (
            {"targets": ["attention.qvk", "q_proj", "out"]},
            [
                "targets ('attention.qvk') must match a layer of GPT2; closest: attention.qkv, "
                "attention.out, blocks.1.attention.qkv",
                "targets ('q_proj') must match a layer of GPT2; its layers are token_embedding, position_embedding, "
                "qkv, out, up, down",
            ],
        ),
        (
            {"targets": ["final_norm"]},
            [
                "targets ('final_norm') must match one of Linear, Embedding, Conv1d, Conv2d, Conv3d and transformers' "
                "Conv1D; it matches final_norm (LayerNorm)"
            ],
        ),
        (
            {"targets": [".*_embedding"]},
            [
                "position_embedding cannot be adapted: its weight is read without calling it; leave it out of targets",
            ],
        ),
        (
            {"model": lora, "targets": ["0.attention.qkv"]},
            ["blocks.0.attention.qkv has an adapter already; adapt a layer once"],
        ),
    ],
)
def test_wrong_settings_are_refused_together(settings: dict[str, Any], problems: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        lora(**settings)
    assert caught.value.problems == problems


def test_no_adapter_is_read_past() -> None:
    """Every layer of every model that may be adapted gets a gradient."""
    coca_sizes = {"image_size": 4, "patch_size": 2, "vision_layers": 1, "vision_dim": 8, "vision_heads": 2, "dim": 8,
                  "vocab_size": 9, "seq_len": 4, "text_layers": 1, "multimodal_layers": 1, "num_heads": 2,
                  "num_vision_queries": 3, "activation": "swiglu"}  # fmt: skip
    images = {"input_ids": torch.tensor([[1, 2, 3]]), "images": torch.randn(1, 3, 4, 4)}
    for build, inputs in ((untied, batch(0)[0]), (lambda: CoCa(**coca_sizes), images)):
        layers = [name for name, module in build().named_modules() if is_layer(module)]
        with pytest.raises(ConfigError) as caught:
            LoRAModel(build, r=2, alpha=2, targets=layers)
        refused = [problem.split()[0] for problem in caught.value.problems]
        assert all("its weight is read without calling it" in problem for problem in caught.value.problems)
        model = LoRAModel(build, r=2, alpha=2, targets=[f"{name}$" for name in layers if name not in refused])
        outputs = model(inputs)
        sum(output.sum() for output in (outputs.values() if isinstance(outputs, dict) else [outputs])).backward()
        trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        assert len(trained) == 2 * (len(layers) - len(refused))
        assert [name for name, parameter in trained.items() if parameter.grad is None] == []


def test_a_loss_that_reads_the_output_weight_is_refused_with_an_adapted_output() -> None:
    model = lora(untied, targets=["lm_head"])
    model(batch(0)[0])
    with pytest.raises(ConfigError) as caught:
        model(batch(0)[0], head=lambda hidden, weight: hidden.sum())
    assert str(caught.value) == (
        "lm_head is adapted, and the loss reads its weight without calling it; leave lm_head out of targets, or use a "
        "loss of all logits (train.loss = @CLMCrossEntropyLoss)"
    )
    lora(untied)(batch(0)[0], head=lambda hidden, weight: hidden.sum())


# --------------------------------------------------------------------------------------------------------- training


@pytest.mark.slow
def test_a_compiled_model_computes_the_same() -> None:
    model = in_memory(lambda: lora(untied, targets=[*ATTENTION, "token_embedding", "up"]))
    train(parts_of(model), range(2))
    compiled = torch.compile(copy.deepcopy(model), backend="aot_eager")
    tokens = batch(5)[0]
    for network in (model, compiled):
        (network(tokens) ** 2).mean().backward()
    torch.testing.assert_close(compiled(tokens), model(tokens))
    for one, two in zip(model.parameters(), compiled.parameters(), strict=True):
        assert (one.grad is None) == (two.grad is None)
        if one.grad is not None:
            torch.testing.assert_close(one.grad, two.grad)
    assert equal(merged_state_dict(compiled), merged_state_dict(model))


def test_accumulation_changes_nothing() -> None:
    whole = train(parts_of(in_memory(lora)), range(4))
    assert train(parts_of(in_memory(lora)), range(4), accumulate=3) == [pytest.approx(line, abs=1e-5) for line in whole]


def test_autocast_is_near_and_adapters_stay_float32() -> None:
    whole = train(parts_of(in_memory(lora)), range(6))
    model = in_memory(lora)
    lines = train(parts_of(model, "bfloat16"), range(6))
    assert lines != whole
    assert [line[0] for line in lines] == pytest.approx([line[0] for line in whole], rel=0.02)
    assert {tensor.dtype for tensor in bits(model).values()} == {torch.float32}


def train_on_ranks(accumulate: int = 1, precision: str = "float32", **settings: Any) -> tuple[list, dict, dict]:
    """Losses, start weights and merged weights of some steps on all ranks there are."""
    with torch.device("meta"):
        model = lora(**settings)
    if dist.is_initialized():
        shard(model, init_device_mesh("cpu", (dist.get_world_size(),)), precision)
    model.to_empty(device="cpu")
    initialize(model, ComposedInitializer(), 7)
    start = {n: t.full_tensor() if hasattr(t, "full_tensor") else t.clone() for n, t in model.state_dict().items()}
    lines = train(parts_of(model, precision), range(4), accumulate)
    merged = merged_state_dict(model)
    assert equal(merged, merged_state_dict(model))
    return lines, start, merged


@pytest.mark.slow
@pytest.mark.parametrize(
    ("accumulate", "settings"),
    [(1, {"r": 3}), (3, {"model": untied, "bias": "all", "targets": ["token_embedding", "qkv", "lm_head"]})],
)
def test_two_ranks_equal_one(accumulate: int, settings: dict[str, Any]) -> None:
    lines, start, merged = train_on_ranks(accumulate, **settings)
    for sharded_lines, sharded_start, sharded_merged in run_ranks(2, train_on_ranks, accumulate, **settings):
        assert equal(sharded_start, start)
        for one, two in zip(lines, sharded_lines, strict=True):
            assert two == pytest.approx(one, abs=1e-5)
        assert sharded_merged.keys() == merged.keys()
        for name in merged:
            torch.testing.assert_close(sharded_merged[name], merged[name], rtol=1e-4, atol=1e-5)


def test_ranks_compute_in_bfloat16() -> None:
    lines, _, _ = train_on_ranks()
    for sharded_lines, _, merged in run_ranks(2, train_on_ranks, 1, "bfloat16"):
        assert [line[0] for line in sharded_lines] == pytest.approx([line[0] for line in lines], rel=0.02)
        assert {tensor.dtype for tensor in merged.values()} == {torch.float32}


# ---------------------------------------------------------------------------------------------------------- merging


def test_merged_weights_compute_the_same_and_leave_training_alone() -> None:
    model = in_memory(lambda: lora(untied, targets=[*ATTENTION, "token_embedding", "lm_head", "down"], dropout=0.2))
    train(parts_of(model), range(5))
    before = bits(model)
    merged = merged_state_dict(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert equal(merged_state_dict(model.eval()), merged)
    assert equal(bits(model), before)
    plain = untied()
    plain.load_state_dict(merged)
    torch.testing.assert_close(plain(batch(9)[0]), model(batch(9)[0]), rtol=1e-5, atol=1e-5)
    for tensor in merged.values():
        tensor.zero_()
    model.train()
    assert equal(bits(model), before)


def test_merging_a_bfloat16_model_rounds_once() -> None:
    model = in_memory(lora).to(torch.bfloat16)
    layer = model.blocks[0].attention.qkv
    nn.init.normal_(layer.lora_B)
    merged = merged_state_dict(model)["blocks.0.attention.qkv.weight"]
    exact = layer.weight.float() + 2.0 * layer.lora_B.float() @ layer.lora_A.float()
    assert torch.equal(merged, exact.to(torch.bfloat16))


def test_a_model_without_adapters_is_merged_already() -> None:
    assert equal(merged_state_dict(model := gpt2()), bits(model))


def test_an_adapted_tied_embedding_trains_and_is_not_merged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="modlib"):
        model = in_memory(lambda: lora(targets=["token_embedding"]))
    assert caplog.messages[-1] == (
        "token_embedding.weight is adapted and tied to the output projection, which stays as it is: this model cannot "
        "be merged"
    )
    train(parts_of(model), range(2))
    hidden = torch.randn(1, 2, 32)
    assert torch.equal(
        model._logits(hidden), nn.functional.linear(model.final_norm(hidden), model.token_embedding.weight)
    )
    with pytest.raises(ConfigError) as caught:
        merged_state_dict(model)
    assert str(caught.value) == (
        "token_embedding.weight is adapted and tied to the output projection, must be untied to be merged: the plain "
        "model would change both; leave it out of targets or train a model that is not tied (GPT2.tie_embeddings = "
        "False)"
    )


class Shared(nn.Module):
    """One layer under two names, and two layers with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 3)
        self.second = self.first
        self.table = nn.Embedding(4, 3)
        self.head = nn.Linear(3, 4, bias=False)
        self.head.weight = self.table.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.first(self.table(x))))


def test_a_shared_layer_is_one_and_a_shared_weight_is_not_merged() -> None:
    model = LoRAModel(Shared, r=2, alpha=2, targets=["first"])
    nn.init.normal_(model.first.lora_B)
    plain = Shared()
    plain.load_state_dict(merged_state_dict(model))
    x = torch.arange(4)
    torch.testing.assert_close(plain(x), model(x))
    with pytest.raises(ConfigError, match=r"^head.weight is adapted and tied to table.weight, must be untied"):
        merged_state_dict(LoRAModel(Shared, r=2, alpha=2, targets=["head"]))


# ------------------------------------------------------------------------------------------------------ checkpoints


def saved(folder: Path, **settings: Any) -> tuple[Any, Parts]:
    """Three steps of training, then a checkpoint."""
    torch.manual_seed(0)
    model = in_memory(lambda: lora(**{"dropout": 0.3} | settings))
    parts = parts_of(model)
    train(parts, range(3))
    saving = save(
        folder,
        step=3,
        model=model,
        optimizer=parts.optimizer,
        scheduler=parts.scheduler,
        rank_state=capture_rng(),
    )
    return saving, parts


def test_adapter_checkpoints_are_small_and_resume_to_the_bit(tmp_path: Path) -> None:
    small, parts = saved(tmp_path / "small")
    large, _ = saved(tmp_path / "large", adapter_only_checkpoints=False)
    trained = sum(p.nbytes for p in parts.model.parameters() if p.requires_grad)
    total = sum(p.nbytes for p in parts.model.parameters())
    data = sum(path.stat().st_size for path in small.path.glob("*.bin"))
    assert 3 * trained <= data <= 3 * trained + 4096  # adapters and two moments of AdamW
    assert large.bytes - small.bytes == pytest.approx(total - trained, rel=0.1)
    assert verify(small.path) == []

    rest = train(parts, range(3, 6))
    model = in_memory(lambda: lora(dropout=0.3))
    resumed = parts_of(model)
    state = restore_newest(tmp_path / "small", model=model, optimizer=resumed.optimizer, scheduler=resumed.scheduler)
    assert state is not None
    assert state.rank_state is not None
    restore_rng(state.rank_state)
    assert train(resumed, range(3, 6)) == rest
    assert equal(bits(model), bits(parts.model))


def built_here() -> Any:
    """The same adapted model on the ranks there are, sharded where there are several."""
    with torch.device("meta"):
        model = lora(untied, targets=[*ATTENTION, "token_embedding"])
    if dist.is_initialized():
        shard(model, init_device_mesh("cpu", (dist.get_world_size(),)), "float32")
    model.to_empty(device="cpu")
    initialize(model, ComposedInitializer(), 7)
    return model


def trained_and_saved(folder: Path) -> dict[str, Tensor]:
    """Adapters after two steps, which a checkpoint holds, merged."""
    model = built_here()
    parts = parts_of(model)
    train(parts, range(2))
    save(folder, step=2, model=model, optimizer=parts.optimizer, scheduler=parts.scheduler)
    return merged_state_dict(model)


def loaded_and_merged(folder: Path) -> dict[str, Tensor]:
    model = built_here()
    parts = parts_of(model)
    restored = restore_newest(folder, model=model, optimizer=parts.optimizer, scheduler=parts.scheduler)
    assert restored is not None
    return merged_state_dict(model)


def test_adapter_checkpoints_go_from_any_number_of_ranks_to_any_other(tmp_path: Path) -> None:
    """And what is merged from them is the same to the bit, on one rank and on two."""
    for folder, saved_by in (
        (tmp_path / "two", run_ranks(2, trained_and_saved, tmp_path / "two")),
        (tmp_path / "one", [trained_and_saved(tmp_path / "one")]),
    ):
        names = [name for name in open_checkpoint(folder / "step-00000002").manifest.tensors if "model." in name]
        assert len(names) == 10
        assert all("lora_" in name for name in names)
        for found in [*saved_by, loaded_and_merged(folder), *run_ranks(2, loaded_and_merged, folder)]:
            assert equal(found, saved_by[0])


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"r": 2}, "blocks.0.attention.qkv.lora_A (checkpoint (4, 32), model (2, 32))"),
        ({"targets": ["qkv"]}, "4 only in the checkpoint: blocks.0.attention.out.lora_A"),
        ({"targets": [*ATTENTION, "up"]}, "4 missing from the checkpoint: blocks.0.feed_forward.up.lora_A"),
        ({"bias": "lora_only"}, "4 missing from the checkpoint: blocks.0.attention.qkv.bias"),
        ({"adapter_only_checkpoints": False}, "missing from the checkpoint: token_embedding.weight"),
    ],
)
def test_a_checkpoint_of_other_adapters_is_refused(tmp_path: Path, settings: dict[str, Any], text: str) -> None:
    saving, _ = saved(tmp_path)
    model = in_memory(lambda: lora(**settings))
    before = bits(model)
    with pytest.raises(CheckpointError) as caught:
        load(saving.path, model=model)
    assert text in str(caught.value)
    assert equal(bits(model), before)


class Running(nn.Module):
    """A layer and a norm whose buffers change in training."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.norm = nn.Linear(3, 3), nn.BatchNorm1d(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.layer(x))


def test_buffers_are_in_a_checkpoint_of_adapters(tmp_path: Path) -> None:
    model = LoRAModel(Running, r=2, alpha=2, targets=["layer"])
    model(torch.randn(8, 3))
    path = save(tmp_path, step=1, model=model).path
    other = LoRAModel(Running, r=2, alpha=2, targets=["layer"])
    load(path, model=other)
    assert torch.equal(other.norm.running_mean, model.norm.running_mean)
    assert not torch.equal(other.layer.weight, model.layer.weight)


def test_sources_of_the_plain_model_find_the_plain_model(tmp_path: Path) -> None:
    plain = in_memory(gpt2, seed=3)
    path = save(tmp_path, step=1, model=plain).path

    def pretrained() -> GPT2:
        model = gpt2()

        def fill(model: nn.Module, seed: int) -> None:
            load(path, model=model)  # strict: a name too many or too few is an error

        add_weights(model, fill)
        return model

    model = in_memory(lambda: lora(pretrained))
    assert equal({name: tensor for name, tensor in bits(model).items() if "lora_" not in name}, bits(plain))
    assert model.adapter_only_checkpoints is True
    assert bits(model)["blocks.0.attention.qkv.lora_A"].any()
