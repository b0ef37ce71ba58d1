"""Wrappers return the same model with a note, and any sensible order of them does the same."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from modlib.checkpointing.model_loading import FSDPCheckpointLoading, TorchCheckpointLoading
from modlib.checkpointing.writing import save
from modlib.distributed.fsdp import Sharding, shard
from modlib.models.gpt2 import GPT2
from modlib.models.huggingface import HuggingFacePretrainedModel
from modlib.models.initialization import ComposedInitializer
from modlib.models.lora import LoRAModel
from modlib.models.weights import initialize, named_state
from modlib.models.wrappers import CheckpointedModel, FSDPModel, InitializedModel
from modlib.runtime.errors import ConfigError
from tests.workers import run_ranks

small = partial(GPT2, vocab_size=64, seq_len=16, num_layers=4, num_heads=2, dim=16)
llama = partial(
    HuggingFacePretrainedModel,
    config={
        "model_type": "llama",
        "vocab_size": 64,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "max_position_embeddings": 16,
        "tie_word_embeddings": True,
    },
)
Wrapper = Callable[..., nn.Module]


adapted = partial(LoRAModel, r=2, alpha=4.0, targets=["(attention.qkv|q_proj)"])  # of either model


def in_memory(model: Wrapper, seed: int = 3) -> Any:
    with torch.device("meta"):
        built = model()
    if dist.is_initialized():
        shard(built, init_device_mesh("cpu", (dist.get_world_size(),)), "float32")
    built.to_empty(device="cpu")
    initialize(built, None, seed)
    return built


def whole(model: nn.Module) -> dict[str, torch.Tensor]:
    return {
        name: (value.full_tensor() if isinstance(value, DTensor) else value).detach()
        for name, value in named_state(model).items()
    }


def orders(path: str) -> dict[str, Wrapper]:
    """Compositions that all end with the checkpoint's weights, sharded by two blocks."""
    initialized = partial(InitializedModel, initialization=ComposedInitializer, seed=9)
    scaled = partial(initialized, initialization=partial(ComposedInitializer, weight_init_type="plain"))
    checkpointed = partial(CheckpointedModel, checkpoint_path=path, checkpoint_loading=TorchCheckpointLoading)
    sharded = partial(FSDPModel, layers_per_unit=2, reshard_after_forward=False)
    return {
        "checkpointed of fsdp of initialized": lambda inner: checkpointed(partial(sharded, partial(scaled, inner))),
        "fsdp of checkpointed": lambda inner: sharded(partial(checkpointed, inner)),
        "checkpointed of fsdp": lambda inner: checkpointed(partial(sharded, inner)),
        "fsdp of checkpointed of initialized": lambda inner: sharded(partial(checkpointed, partial(scaled, inner))),
        "adapter of fsdp of checkpointed": lambda inner: adapted(partial(sharded, partial(checkpointed, inner))),
        "adapter of checkpointed of fsdp": lambda inner: adapted(partial(checkpointed, partial(sharded, inner))),
        "fsdp of adapter of checkpointed of initialized": lambda inner: sharded(
            partial(adapted, partial(checkpointed, partial(scaled, inner)))
        ),
    }


def build_in_order(path: str, order: str, inner: Wrapper) -> tuple[dict[str, torch.Tensor], int, torch.Tensor]:
    """(weights, FSDP units, logits) on the ranks there are."""
    model = in_memory(partial(orders(path)[order], inner))
    assert model.sharding == Sharding(layers_per_unit=2, reshard_after_forward=False)
    units = sum(isinstance(module, FSDPModule) for module in model.modules())
    with torch.no_grad():
        logits = model.eval()(torch.arange(12).view(1, 12))
    return whole(model), units, logits


@pytest.mark.slow
@pytest.mark.parametrize("inner", [small, pytest.param(llama, marks=pytest.mark.slow)], ids=["gpt2", "llama"])
@pytest.mark.parametrize("order", list(orders("")))
def test_any_order_gives_the_checkpoints_weights(order: str, inner: Wrapper, tmp_path: Path) -> None:
    source = in_memory(partial(InitializedModel, inner, partial(ComposedInitializer, "plain", std=0.3)), seed=1)
    path = tmp_path / "weights.pt"
    torch.save(whole(source), path)
    with torch.no_grad():
        expected = source.eval()(torch.arange(12).view(1, 12))
    found, _, logits = build_in_order(str(path), order, inner)
    adapters = {name: found.pop(name) for name in list(found) if "lora_" in name}
    assert found.keys() == whole(source).keys()
    assert all(torch.equal(found[name], value) for name, value in whole(source).items())
    assert torch.equal(logits, expected)
    assert len(adapters) == (8 if "adapter" in order else 0)
    assert all(value.any() == name.endswith("lora_A") for name, value in adapters.items())
    for other, units, other_logits in run_ranks(2, build_in_order, str(path), order, inner):
        assert all(torch.equal(other[name], value) for name, value in {**found, **adapters}.items())
        assert units == 5  # every block belongs to a group, and the root
        torch.testing.assert_close(other_logits, expected)


def adapters_over(path: str, inner: Wrapper, outermost: str) -> dict[str, torch.Tensor]:
    """A base of its own, and the adapters of another run, on the ranks there are."""
    base = partial(InitializedModel, inner, partial(ComposedInitializer, "plain"))
    from_run = partial(CheckpointedModel, checkpoint_path=path, checkpoint_loading=FSDPCheckpointLoading)
    orders: dict[str, Wrapper] = {
        "fsdp": partial(FSDPModel, partial(from_run, partial(adapted, base))),
        "checkpointed": partial(from_run, partial(FSDPModel, partial(adapted, base))),
    }
    return whole(in_memory(orders[outermost], seed=9))


@pytest.mark.slow
@pytest.mark.parametrize("outermost", ["fsdp", "checkpointed"])
@pytest.mark.parametrize("inner", [small, llama], ids=["gpt2", "llama"])
def test_adapters_of_another_run_go_on_over_the_same_base(inner: Wrapper, outermost: str, tmp_path: Path) -> None:
    """Its checkpoint holds adapters only; the base comes from where it would come without one."""
    base = partial(InitializedModel, inner, partial(ComposedInitializer, "plain"))
    other = in_memory(partial(adapted, base), seed=9)
    with torch.no_grad():
        for parameter in other.parameters():
            if parameter.requires_grad:
                parameter.add_(0.5)
    path = str(save(tmp_path, step=1, model=other).path)
    for found in [adapters_over(path, inner, outermost), *run_ranks(2, adapters_over, path, inner, outermost)]:
        assert found.keys() == whole(other).keys()
        assert all(torch.equal(found[name], value) for name, value in whole(other).items())


def test_the_same_module_comes_back() -> None:
    built = small()
    assert InitializedModel(lambda: built, ComposedInitializer) is built
    assert FSDPModel(lambda: built) is built
    assert type(built) is GPT2


def test_initialized_takes_its_own_seed_or_the_runs() -> None:
    direct = small()
    ComposedInitializer()(direct, 3)
    expected = direct.token_embedding.weight
    wrapped = partial(InitializedModel, small, ComposedInitializer)
    assert torch.equal(in_memory(wrapped, seed=3).token_embedding.weight, expected)
    assert torch.equal(
        in_memory(partial(wrapped, seed=3), seed=8).token_embedding.weight, direct.token_embedding.weight
    )
    assert not torch.equal(in_memory(wrapped, seed=8).token_embedding.weight, expected)
    assert torch.equal(wrapped(seed=0).token_embedding.weight, in_memory(wrapped, seed=0).token_embedding.weight)
    with pytest.raises(ConfigError, match=r"^seed \(-1\) must be at least 0; leave it out to take the run's$"):
        wrapped(seed=-1)


def test_initialized_leaves_alone_what_is_added_later() -> None:
    model = in_memory(partial(adapted, partial(InitializedModel, small, ComposedInitializer)))
    adapter = model.blocks[0].attention.qkv
    assert not adapter.lora_B.any()
    assert adapter.lora_A.abs().max() <= 16**-0.5
    assert abs(model.token_embedding.weight.std().item() - 0.02) < 0.003
    outer = partial(InitializedModel, partial(adapted, small), ComposedInitializer)
    with pytest.raises(
        ConfigError, match=r"parameter blocks\.0\.attention\.qkv\.lora_A of LoRALinear is claimed by no"
    ):
        in_memory(outer)


def test_a_missing_checkpoint_is_a_config_error_at_once(tmp_path: Path) -> None:
    path = str(tmp_path / "none")
    with torch.device("meta"), pytest.raises(ConfigError) as error:
        CheckpointedModel(small, path, TorchCheckpointLoading)
    assert str(error.value) == f"checkpoint_path ('{path}') must exist; there is no {path}"


def test_wrong_sharding_is_refused() -> None:
    with pytest.raises(ConfigError) as error:
        FSDPModel(lambda: nn.Linear(2, 2), layers_per_unit=0, precision="float16")  # type: ignore[arg-type]
    assert error.value.problems == [
        "layers_per_unit (0) must be at least 1; 1 gathers one block at a time",
        "precision ('float16') must be 'float32' or 'bfloat16'; leave it out to take the run's",
        "units (None) must be given: Linear does not say what its blocks are",
    ]
    with pytest.raises(ConfigError, match=r"^units \(Blok\) must be classes of modules in GPT2; it has Block, Caus"):
        FSDPModel(small, units=["Blok"])
    with pytest.raises(ConfigError, match=r"^units \(Block, FeedForward\) of GPT2 must not hold one another; name one"):
        FSDPModel(small, units=["Block", "FeedForward"])
    with pytest.raises(ConfigError, match=r"^units \(\[\]\) must name at least one class"):
        FSDPModel(small, units=[])
    assert FSDPModel(small, units=["FeedForward"], precision="bfloat16").sharding == Sharding(
        units=("FeedForward",), precision="bfloat16"
    )
