"""Initial weights: GPT-2's numbers, one rule per parameter, the same bits on any world size."""

from __future__ import annotations

import hashlib
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from modlib.models.gpt2 import GPT2
from modlib.models.initialization import ComposedInitializer
from modlib.runtime.errors import ConfigError
from tests.workers import run_ranks


def small(**changes: Any) -> GPT2:
    return GPT2(**{"vocab_size": 211, "seq_len": 32, "num_layers": 3, "num_heads": 4, "dim": 64, **changes})


def initialized(model: nn.Module, seed: int = 0, **arguments: Any) -> dict[str, Tensor]:
    ComposedInitializer(**arguments)(model, seed)
    return dict(model.state_dict())


def fingerprint(tensors: dict[str, Tensor]) -> dict[str, str]:
    return {name: hashlib.sha256(tensor.numpy().tobytes()).hexdigest() for name, tensor in tensors.items()}


@pytest.mark.parametrize("weight_init_type", ["plain", "scaled", "scaled_embed"])
@pytest.mark.parametrize("std", [0.02, 0.5, "auto"])
def test_distributions(weight_init_type: Any, std: Any) -> None:
    model = small(vocab_size=4001, seq_len=256, norm=nn.LayerNorm, tie_embeddings=False, activation="swiglu")
    for parameter in model.parameters():
        nn.init.constant_(parameter, math.nan)
    state = initialized(model, weight_init_type=weight_init_type, std=std)
    number = math.sqrt(2 / (5 * 64)) if std == "auto" else std
    for name, tensor in state.items():
        if name.endswith("bias"):
            assert torch.equal(tensor, torch.zeros_like(tensor)), name
        elif "norm" in name:
            assert torch.equal(tensor, torch.ones_like(tensor)), name
        else:
            expected = number
            if weight_init_type != "plain" and name.endswith(("attention.out.weight", "feed_forward.down.weight")):
                expected /= math.sqrt(2 * 3)
            if weight_init_type == "scaled_embed" and "embedding" in name:
                expected = math.sqrt(0.4)
            error = 4 / math.sqrt(tensor.numel())
            assert abs(tensor.std().item() / expected - 1) < error, name
            assert abs(tensor.mean().item()) < expected * error, name


def test_mean() -> None:
    assert initialized(small(), mean=3.0)["token_embedding.weight"].mean() == pytest.approx(3, abs=0.01)


def test_values_are_normal_and_every_parameter_has_its_own() -> None:
    state = initialized(small(dim=128, num_layers=2))
    weight = state["blocks.0.feed_forward.up.weight"] / 0.02
    for threshold, share in ((1, 0.6827), (2, 0.9545), (3, 0.9973)):
        assert (weight.abs() < threshold).float().mean() == pytest.approx(share, abs=0.005)
    other = state["blocks.1.feed_forward.up.weight"] / 0.02
    assert abs((weight * other).mean()) < 0.02


def test_values_depend_on_seed_and_name_only() -> None:
    first = fingerprint(initialized(small(), 7))
    torch.manual_seed(99)
    assert fingerprint(initialized(small(), 7)) == first
    deeper = fingerprint(initialized(small(num_layers=4), 7, num_layers=3))
    assert {name: deeper[name] for name in first} == first
    other = fingerprint(initialized(small(), 8))
    drawn = [name for name in first if "weight" in name and "norm" not in name]
    assert all(other[name] != first[name] for name in drawn)


def test_the_global_random_state_is_not_touched() -> None:
    model = small()
    before = torch.get_rng_state()
    ComposedInitializer()(model, 0)
    assert torch.equal(torch.get_rng_state(), before)


def test_wrapped_blocks_are_initialized_the_same() -> None:
    """Activation checkpointing and torch.compile change names; silently missing them would leave torch's defaults."""
    expected = fingerprint(initialized(small()))
    model = small()
    for index, block in enumerate(model.blocks):
        model.blocks[index] = checkpoint_wrapper(block)
    assert any("_checkpoint_wrapped_module" in name for name, _ in model.named_parameters())
    assert fingerprint(initialized(model)) == expected
    compiled: Any = torch.compile(small())
    ComposedInitializer(num_layers=3)(compiled, 0)
    assert fingerprint(dict(compiled._orig_mod.state_dict())) == expected


def test_bfloat16_parameters_are_the_rounded_values() -> None:
    exact, rounded = initialized(small()), initialized(small().to(torch.bfloat16))
    for name, tensor in exact.items():
        assert torch.equal(rounded[name], tensor.bfloat16()), name


def sharded(shape: tuple[int, ...], on_meta: bool) -> dict[str, str]:
    from torch.distributed.device_mesh import init_device_mesh

    mesh = init_device_mesh("cpu", shape, mesh_dim_names=("replicate", "shard")[-len(shape) :])
    with torch.device("meta" if on_meta else "cpu"):
        model = small(position="rotary", dim=72, vocab_size=83)  # uneven shards, some empty
    for unit in model.fsdp_units():
        fully_shard(unit, mesh=mesh)
    fully_shard(model, mesh=mesh)
    if on_meta:
        model.to_empty(device="cpu")
    ComposedInitializer()(model, 5)
    whole = {}
    for name, tensor in model.state_dict().items():
        assert isinstance(tensor, DTensor)
        whole[name] = tensor.full_tensor()
    whole["cos"] = next(model.buffers())
    return fingerprint(whole)


@pytest.mark.parametrize(
    ("world_size", "shape"),
    [(1, (1,)), (2, (2,)), *(pytest.param(4, shape, marks=pytest.mark.slow) for shape in ((4,), (2, 2)))],
)
def test_sharded_values_equal_unsharded(world_size: int, shape: tuple[int, ...]) -> None:
    model = small(position="rotary", dim=72, vocab_size=83)
    expected = fingerprint({**initialized(model, 5), "cos": next(model.buffers())})
    for on_meta in (True, False):
        assert run_ranks(world_size, sharded, shape, on_meta) == [expected] * world_size


class WithToken(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cls = nn.Parameter(torch.zeros(3))
        self.linear = nn.Linear(2, 2)


def test_a_parameter_without_a_rule_is_named_and_nothing_is_touched() -> None:
    model = WithToken()
    before = model.linear.weight.clone()
    with pytest.raises(ConfigError) as caught:
        ComposedInitializer("plain")(model, 0)
    assert str(caught.value) == (
        "parameter cls of WithToken is claimed by no rule, must be exactly one; hold it in a module that has a rule "
        "(Linear, Embedding, Conv, LayerNorm, RMSNorm, a class named *Norm) or write another model_initialization"
    )
    assert torch.equal(model.linear.weight, before)


class LinearNorm(nn.Linear):
    pass


def test_a_parameter_with_two_rules_is_named() -> None:
    with pytest.raises(ConfigError, match=r"parameter 0\.weight of LinearNorm is claimed by norm and matrix, must be"):
        ComposedInitializer("plain")(nn.Sequential(LinearNorm(2, 2)), 0)


def test_models_of_other_makes() -> None:
    model = nn.Sequential(nn.Embedding(5, 4), nn.Conv1d(4, 4, 1), nn.GroupNorm(2, 4), nn.Linear(4, 5))
    with pytest.raises(ConfigError) as caught:
        ComposedInitializer()(model, 0)
    assert str(caught.value) == (
        "residual_outputs (attention.out, feed_forward.down) must name a matrix of Sequential for weight_init_type "
        "('scaled'); name those that write to the residual stream, or set weight_init_type = 'plain'"
    )
    with pytest.raises(ConfigError, match=r"num_layers \(None\) must be given for weight_init_type \('scaled'\)"):
        ComposedInitializer(residual_outputs=["1"])(model, 0)
    with pytest.raises(ConfigError, match=r"dim \(None\) must be given for std \('auto'\): Sequential has no dim"):
        ComposedInitializer("plain", std="auto")(model, 0)
    ComposedInitializer(residual_outputs=["1"], num_layers=2, std="auto", dim=4)(model, 0)


def test_meta_parameters_are_refused() -> None:
    with torch.device("meta"):
        model = nn.Linear(2, 2)
    with pytest.raises(ConfigError, match=r"parameter weight is on the meta device; call model.to_empty\(device=...\)"):
        ComposedInitializer("plain")(model, 0)


def test_wrong_settings_are_refused_together() -> None:
    with pytest.raises(ConfigError) as caught:
        ComposedInitializer("xavier", std="big", num_layers=0, dim=0)  # type: ignore[arg-type]
    assert caught.value.problems == [
        "weight_init_type ('xavier') must be 'plain', 'scaled' or 'scaled_embed'",
        "std ('big') must be a number of at least 0, or 'auto'",
        "num_layers (0) must be at least 1",
        "dim (0) must be at least 1",
    ]
    with pytest.raises(ConfigError, match=r"std \(-1.0\) must be a number of at least 0, or 'auto'"):
        ComposedInitializer(std=-1.0)
