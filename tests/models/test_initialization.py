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

from modlib.models.coca import CoCa
from modlib.models.gpt2 import GPT2
from modlib.models.initialization import ComposedInitializer, plain_name
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
    state = initialized(small(), mean=3.0, weight_init_type="scaled_embed")
    for name, tensor in state.items():
        if name.endswith("bias") or "norm" in name:
            assert tensor.unique().item() in (0, 1), name
        else:
            assert tensor.mean().item() == pytest.approx(3, abs=4 * tensor.std().item() / math.sqrt(tensor.numel())), (
                name
            )


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


@pytest.mark.slow
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


def sharded(shape: tuple[int, ...], on_meta: bool, wrapped: bool) -> dict[str, str]:
    from torch.distributed.device_mesh import init_device_mesh

    mesh = init_device_mesh("cpu", shape, mesh_dim_names=("replicate", "shard")[-len(shape) :])
    with torch.device("meta" if on_meta else "cpu"):
        model = small(position="rotary", dim=72, vocab_size=83)  # uneven shards, some empty
    if wrapped:  # the order of a run: activation checkpointing, compile, shard, initialise
        for index, block in enumerate(model.blocks):
            model.blocks[index] = checkpoint_wrapper(block)
        for block in model.blocks:
            block.compile()
    for unit in model.fsdp_units():
        fully_shard(unit, mesh=mesh)
    fully_shard(model, mesh=mesh)
    if on_meta:
        model.to_empty(device="cpu")
    ComposedInitializer(rules={r"blocks\.1\.attention\.out\.weight": 0.5})(model, 5)
    whole = {}
    for name, tensor in model.state_dict().items():
        assert isinstance(tensor, DTensor)
        whole[plain_name(name)] = tensor.full_tensor()
    whole["cos"] = next(model.buffers())
    return fingerprint(whole)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("world_size", "shape"),
    [
        (2, (2,)),
        *(pytest.param(size, shape, marks=pytest.mark.slow) for size, shape in ((1, (1,)), (4, (4,)), (4, (2, 2)))),
    ],
)
def test_sharded_values_equal_unsharded(world_size: int, shape: tuple[int, ...]) -> None:
    model = small(position="rotary", dim=72, vocab_size=83)
    state = initialized(model, 5, rules={r"blocks\.1\.attention\.out\.weight": 0.5})
    expected = fingerprint({**state, "cos": next(model.buffers())})
    for on_meta, wrapped in ((True, False), (False, False), (True, True)):
        assert run_ranks(world_size, sharded, shape, on_meta, wrapped) == [expected] * world_size


def test_coca_is_claimed_whole() -> None:
    """Images, captions, pooling queries and tokens: matrices and embeddings at std, the rest constant."""
    model = CoCa(
        image_size=16,
        patch_size=4,
        vision_layers=1,
        vision_dim=48,
        vision_heads=2,
        vocab_size=97,
        seq_len=16,
        text_layers=1,
        multimodal_layers=1,
        dim=48,
        num_heads=2,
    )
    for parameter in model.parameters():
        nn.init.constant_(parameter, math.nan)
    residual = ["attention.out", "feed_forward.down"]
    ComposedInitializer(std=0.3, residual_outputs=residual, num_layers=8)(model, 0)
    for name, parameter in model.named_parameters():
        assert parameter.isfinite().all(), name
        if parameter.ndim < 2:
            assert len(parameter.unique()) == 1, name
            assert parameter.unique().item() in (0, 1), name
        else:
            scaled = any(f".{name}".endswith(f".{output}.weight") for output in residual)
            expected = 0.3 / 4 if scaled else 0.3
            error = 5 / math.sqrt(parameter.numel())
            assert parameter.std().item() == pytest.approx(expected, rel=error), name
            assert abs(parameter.mean().item()) < expected * error, name


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
        "parameter cls of WithToken is claimed by no rule, must be exactly one; add a pattern for it to "
        'ComposedInitializer.rules, say in its class `parameter_rules = {"cls": "embedding"}` (or matrix, residual, '
        "zeros, ones), or hold it in a module that has a rule (Linear, Embedding, Conv, LayerNorm, RMSNorm, a class "
        "named *Norm)"
    )
    assert torch.equal(model.linear.weight, before)


def wrapped_by_name(wrapper: str) -> nn.Module:
    """A block with a parameter that no rule claims, as a run wraps it before it is initialised."""
    model = nn.Sequential(nn.Linear(2, 2), WithToken())
    if wrapper == "checkpointing":
        model[1] = checkpoint_wrapper(model[1])
    elif wrapper == "compile":
        model[1] = torch.compile(model[1])
    else:
        fully_shard(model[1])
        fully_shard(model)
    return model


def refusal_of(wrapper: str) -> tuple[str, bool]:
    """What is said, and whether anything was touched."""
    model = wrapped_by_name(wrapper)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(7.0)
    with pytest.raises(ConfigError) as caught:
        ComposedInitializer("plain")(model, 0)
    return str(caught.value), all(bool((parameter == 7.0).all()) for parameter in model.parameters())


@pytest.mark.parametrize("wrapper", ["checkpointing", "compile", "fsdp"])
def test_a_parameter_without_a_rule_is_named_behind_a_wrapper(wrapper: str) -> None:
    found = run_ranks(2, refusal_of, wrapper) if wrapper == "fsdp" else [refusal_of(wrapper)]
    for text, untouched in found:
        assert text.startswith("parameter 1.cls of WithToken is claimed by no rule, must be exactly one; add a pattern")
        assert "\n" not in text  # it alone
        assert untouched


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


def test_rules_of_the_user_go_first() -> None:
    rules = {r".*\.attention\.out\.weight": 0.5, "token_embedding.weight": 0, r"blocks\.0\.attention_norm\.weight": 0.1}
    state, plain = initialized(small(), rules=rules), initialized(small())
    changed = {name for name in state if not torch.equal(state[name], plain[name])}
    assert (
        changed
        == {
            *(f"blocks.{index}.attention.out.weight" for index in range(3)),
            "token_embedding.weight",
            "lm_head.weight",  # tied
            "blocks.0.attention_norm.weight",
        }
        & state.keys()
    )
    assert state["blocks.2.attention.out.weight"].std().item() == pytest.approx(0.5, rel=0.05)
    assert not state["token_embedding.weight"].any()
    assert torch.equal(initialized(small(), rules=rules, mean=1.0)["token_embedding.weight"], torch.zeros(211, 64))
    assert fingerprint(initialized(small(), rules={})) == fingerprint(plain)


def test_modalities_expressions_match_whole_names() -> None:
    """`re.fullmatch` on names without wrappers, so that a rule also counts under activation checkpointing."""
    model = small()
    model.blocks[0] = checkpoint_wrapper(model.blocks[0])
    state = initialized(model, rules={r"blocks\.\d+\.attention\.(qkv|out)\.weight": 0.002})
    for name, tensor in state.items():
        if "attention." in name and name.endswith("weight"):
            assert tensor.std().item() == pytest.approx(0.002, rel=0.05), name


def test_rules_that_miss_or_overlap_are_refused() -> None:
    rules = {"attention.out": 0.1, r"blocks.0.attention.qkv.weigth": 0.1, r"pos.*": 0.1, r"position_\w+\.weight": 0.2}
    with pytest.raises(ConfigError) as caught:
        ComposedInitializer(rules=rules)(small(), 0)
    assert caught.value.problems == [
        "parameter position_embedding.weight must match one of the rules, but matches 'pos.*' and "
        "'position_\\\\w+\\\\.weight'; make one of them narrower",
        "rules ('attention.out') must match the whole name of a parameter of GPT2; names near it are "
        "blocks.0.attention.out.weight, blocks.0.attention.out.bias, blocks.1.attention.out.weight",
        "rules ('blocks.0.attention.qkv.weigth') must match the whole name of a parameter of GPT2; names near it are "
        "blocks.0.attention.qkv.weight, blocks.2.attention.qkv.weight, blocks.1.attention.qkv.weight",
    ]


def test_a_rule_for_what_another_source_sets_is_refused() -> None:
    with pytest.raises(
        ConfigError,
        match=r"rules \('0.weight'\) must match the whole name of a parameter of Sequential "
        "that no other source sets; names near it are 0.bias",
    ):
        ComposedInitializer("plain", rules={"0.weight": 1})(nn.Sequential(nn.Linear(2, 2)), 0, skip={"0.weight"})


class Pooling(nn.Module):
    parameter_rules = {"query": "embedding", "out": "residual", "mix": "matrix", "scale": "ones", "shift": "zeros"}

    def __init__(self) -> None:
        super().__init__()
        for name in self.parameter_rules:
            self.register_parameter(name, nn.Parameter(torch.full((100, 100), math.nan)))


def test_a_class_says_what_its_own_parameters_are() -> None:
    model = nn.Sequential(Pooling())
    ComposedInitializer("scaled_embed", num_layers=2)(model, 0)
    found = {name: (p.mean().item(), p.std().item()) for name, p in model[0].named_parameters()}
    expected = {"query": (0, math.sqrt(0.4)), "out": (0, 0.01), "mix": (0, 0.02), "scale": (1, 0), "shift": (0, 0)}
    for name, (mean, std) in expected.items():
        assert found[name] == (pytest.approx(mean, abs=0.04 * std), pytest.approx(std, rel=0.03)), name


class BadPooling(Pooling):
    parameter_rules = {"query": "normal"}


def test_a_class_that_declares_nonsense_is_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        ComposedInitializer("plain")(BadPooling(), 0)
    assert str(caught.value) == (
        "parameter_rules of BadPooling ('query': 'normal') must be one of embedding, matrix, residual, zeros, ones"
    )


class Conv1D(nn.Module):
    """As in transformers.pytorch_utils: weight (in, out)."""

    def __init__(self, out: int, into: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.full((into, out), math.nan)), nn.Parameter(torch.ones(out))


def test_kinds_of_layers() -> None:
    model = nn.ModuleDict(
        {
            "hf": Conv1D(64, 64),
            "patches": nn.Conv2d(3, 32, 7),
            "up": nn.ConvTranspose1d(16, 16, 9),
            "attention": nn.MultiheadAttention(64, 2, add_bias_kv=True),
            "cross": nn.MultiheadAttention(64, 2, kdim=48, vdim=32),
            "norm": nn.BatchNorm2d(7),
            "bag": nn.EmbeddingBag(50, 40),
        }
    )
    ComposedInitializer("plain", std=0.3)(model, 0)
    for name, parameter in model.named_parameters():
        if name == "norm.weight":
            assert torch.equal(parameter, torch.ones(7))
        elif name.endswith("bias"):
            assert not parameter.any(), name
        else:
            error = 4 / math.sqrt(parameter.numel())
            assert parameter.std().item() == pytest.approx(0.3, rel=error), name
            assert abs(parameter.mean().item()) < 0.3 * error, name


def test_whole_numbers_are_numbers() -> None:
    assert initialized(small(), std=1)["position_embedding.weight"].std().item() == pytest.approx(1, rel=0.1)
    assert not initialized(small(), std=0)["position_embedding.weight"].any()


def test_wrong_settings_are_refused_together() -> None:
    with pytest.raises(ConfigError) as caught:
        ComposedInitializer("xavier", std="big", num_layers=0, dim=0)  # type: ignore[arg-type]
    assert caught.value.problems == [
        "weight_init_type ('xavier') must be 'plain', 'scaled' or 'scaled_embed'",
        "std ('big') must be a number of at least 0, or 'auto'",
        "num_layers (0) must be at least 1",
        "dim (0) must be at least 1",
    ]
    for std in (-1.0, math.nan, math.inf, True, "Auto"):
        with pytest.raises(ConfigError, match=rf"std \({std!r}\) must be a number of at least 0, or 'auto'"):
            ComposedInitializer(std=std)  # type: ignore[arg-type]
    with pytest.raises(ConfigError) as caught:
        ComposedInitializer(mean=math.nan, rules={"a": -1, "(": 0.1})
    assert caught.value.problems == [
        "mean (nan) must be a finite number",
        "std of rule 'a' (-1) must be a number of at least 0; 0 is all zeros",
        "rules ('(') must be regular expressions: missing ), unterminated subpattern at position 0",
    ]
