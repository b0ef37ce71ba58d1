"""Muon for hidden matrices and AdamW for the rest: torch's own two optimizers, as one that schedules and resumes."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from modlib.checkpointing.loading import restore_newest
from modlib.checkpointing.writing import save
from modlib.models.gpt2 import GPT2
from modlib.models.initialization import ComposedInitializer
from modlib.models.seeded_normal import fill_normal
from modlib.optim.muon import MuonGroups, MuonWithAdamW
from modlib.optim.schedules import LinearWarmupCosine
from modlib.runtime.errors import ConfigError
from tests.workers import run_ranks

HIDDEN = ("attention.qkv.weight", "attention.out.weight", "feed_forward.up.weight", "feed_forward.down.weight")


def small(**changes: Any) -> GPT2:
    model = GPT2(**{"vocab_size": 31, "seq_len": 8, "num_layers": 2, "num_heads": 2, "dim": 12, **changes})
    ComposedInitializer()(model, 0)
    return model


def names(model: nn.Module, group: dict[str, Any]) -> set[str]:
    return {name for name, parameter in model.named_parameters() if any(parameter is p for p in group["params"])}


def backward(model: nn.Module, step: int) -> None:
    tokens = torch.randint(0, 31, (4, 9), generator=torch.Generator().manual_seed(step))
    nn.functional.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten()).backward()


def train(model: nn.Module, optimizers: list[Any], first: int = 0, last: int = 4) -> torch.Tensor:
    for step in range(first, last):
        backward(model, step)
        for one in optimizers:
            one.step()
        model.zero_grad()
    whole = [p.full_tensor() if isinstance(p, DTensor) else p for p in model.parameters()]
    return torch.cat([parameter.detach().flatten() for parameter in whole])


@pytest.mark.parametrize("tied", [True, False])
def test_only_hidden_matrices_are_for_muon(tied: bool) -> None:
    model = small(tie_embeddings=tied)
    muon, decayed, kept = MuonGroups()(model)
    assert [group["algorithm"] for group in (muon, decayed, kept)] == ["muon", "adam_w", "adam_w"]
    assert names(model, muon) == {f"blocks.{index}.{name}" for index in range(2) for name in HIDDEN}
    head = set() if tied else {"lm_head.weight"}
    assert names(model, decayed) == {"token_embedding.weight", "position_embedding.weight"} | head
    assert kept["weight_decay"] == 0.0
    held = [id(parameter) for group in (muon, decayed, kept) for parameter in group["params"]]
    assert sorted(held) == sorted(id(parameter) for parameter in model.parameters())


def test_patterns_take_more_for_adam_w() -> None:
    model = small()
    model.blocks[0].feed_forward.up.weight.requires_grad_(False)
    muon, *others = MuonGroups([r"blocks\.1\.attention"], weight_decay_excluded=["feed_forward.down"])(model)
    assert names(model, muon) == {f"blocks.0.{name}" for name in HIDDEN[:2]} | {"blocks.1.feed_forward.up.weight"}
    assert [(group["algorithm"], group.get("weight_decay")) for group in others] == [
        ("muon", 0.0),
        ("adam_w", None),
        ("adam_w", 0.0),
    ]
    assert names(model, others[0]) == {f"blocks.{index}.feed_forward.down.weight" for index in range(2)}
    assert names(model, others[1]) == {
        "token_embedding.weight",
        "position_embedding.weight",
        "blocks.1.attention.qkv.weight",
        "blocks.1.attention.out.weight",
    }


def test_equal_to_torchs_two_optimizers() -> None:
    model, reference = small(), small()
    groups = MuonGroups()(reference)
    torchs = [
        torch.optim.Muon([groups[0]], lr=2e-3, weight_decay=0.1, momentum=0.9, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(groups[1:], lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1),
    ]
    ours = MuonWithAdamW(MuonGroups()(model), lr=2e-3, adamw_lr=1e-3, momentum=0.9)
    assert torch.equal(train(model, [ours]), train(reference, torchs))


def test_plain_parameters_are_divided_by_what_their_shape_and_name_say() -> None:
    model = nn.Linear(3, 4)
    optimizer = MuonWithAdamW(model.parameters())
    assert [names(model, group) for group in optimizer.param_groups] == [{"weight"}, {"bias"}]
    narrow = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1, bias=False))  # a map to one number is a vector
    optimizer = MuonWithAdamW(narrow.parameters())
    assert [names(narrow, group) for group in optimizer.param_groups] == [{"0.weight"}, {"0.bias", "1.weight"}]
    stacked_bias = nn.Parameter(torch.ones(3, 4))
    optimizer = MuonWithAdamW([("up.weight", model.weight), ("experts.up_bias", stacked_bias)])
    assert [group["algorithm"] for group in optimizer.param_groups] == ["muon", "adam_w"]


def test_a_schedule_scales_both_rates_by_the_same_factor() -> None:
    model = small()
    optimizer = MuonWithAdamW(MuonGroups()(model), lr=2e-2, adamw_lr=1e-3)
    LinearWarmupCosine(optimizer, warmup_steps=3, num_steps=9)
    assert [group["lr"] for group in optimizer.param_groups] == [5e-3, 2.5e-4, 2.5e-4]


@pytest.mark.parametrize("through", ["checkpoint", "state_dict"])
def test_resumed_equals_never_stopping(through: str, tmp_path: Path) -> None:
    def build() -> tuple[nn.Module, MuonWithAdamW, LinearWarmupCosine]:
        model = small()
        optimizer = MuonWithAdamW(MuonGroups()(model), adamw_lr=3e-3)
        return model, optimizer, LinearWarmupCosine(optimizer, warmup_steps=3, num_steps=9)

    model, optimizer, scheduler = build()
    for step in range(3):
        train(model, [optimizer, scheduler], step, step + 1)
    other, resumed, fresh = build()
    if through == "checkpoint":
        save(tmp_path, step=3, model=model, optimizer=optimizer, scheduler=scheduler)
        assert restore_newest(tmp_path, model=other, optimizer=resumed, scheduler=fresh) is not None
    else:
        other.load_state_dict(model.state_dict())
        resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        fresh.load_state_dict(scheduler.state_dict())
    expected = train(model, [optimizer, scheduler], 3, 6)
    assert torch.equal(train(other, [resumed, fresh], 3, 6), expected)


def with_given_gradients(model: nn.Module, optimizer: Any) -> None:
    """Three updates whose gradients are the same bits on any number of ranks."""
    for step in range(3):
        for name, parameter in model.named_parameters():
            parameter.grad = torch.zeros_like(parameter)
            fill_normal(parameter.grad, seed=step, name=name, mean=0.0, std=0.1)
        optimizer.step()
    model.zero_grad()


def sharded(nesterov: bool) -> tuple[torch.Tensor, torch.Tensor]:
    mesh = init_device_mesh("cpu", (torch.distributed.get_world_size(),))
    model = GPT2(vocab_size=31, seq_len=8, num_layers=2, num_heads=2, dim=12)
    for unit in model.fsdp_units():
        fully_shard(unit, mesh=mesh)
    fully_shard(model, mesh=mesh)
    ComposedInitializer()(model, 0)
    optimizer = MuonWithAdamW(MuonGroups()(model), nesterov=nesterov)
    with_given_gradients(model, optimizer)
    given, found = train(model, [], 0, 0), train(model, [optimizer])
    state = optimizer.state[model.blocks[0].attention.qkv.weight]["momentum_buffer"]
    assert isinstance(state, DTensor)
    return given, found


@pytest.mark.slow
@pytest.mark.parametrize("nesterov", [True, False])
def test_two_ranks_equal_one_process(nesterov: bool) -> None:
    model = small()
    optimizer = MuonWithAdamW(MuonGroups()(model), nesterov=nesterov)
    with_given_gradients(model, optimizer)
    expected_given, expected = train(model, [], 0, 0), train(model, [optimizer])
    for given, found in run_ranks(2, sharded, nesterov):
        assert (given - expected_given).abs().max() < 1e-7
        # real gradients are summed over ranks in another order, which the bfloat16 iteration rounds up
        assert (found - expected).abs().max() < 5e-5


def test_groups_of_another_kind_are_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        MuonWithAdamW([{"params": [nn.Parameter(torch.zeros(2, 2))]}])
    assert str(caught.value) == (
        "algorithm of parameter group 0 (None) must be 'muon', 'muon_of_each' or 'adam_w'; set "
        "train.parameter_groups = @MuonGroups, which keeps embeddings and the head from Muon"
    )
    with pytest.raises(ConfigError) as caught:
        MuonWithAdamW([nn.Parameter(torch.zeros(2))])
    assert str(caught.value) == ("groups for Muon (none) must hold at least one matrix; use AdamW for a model without")


def test_wrong_patterns_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"adamw_patterns \('\('\) must be a regular expression: missing \)"):
        MuonGroups(["("])
    with pytest.raises(ConfigError, match=r"adamw_patterns \('wte'\) must match a parameter of GPT2; its names look"):
        MuonGroups(["wte"])(small())


def test_wrong_values_are_torchs_errors() -> None:
    with pytest.raises(ValueError, match="Learning rate should be >= 0 but is: -1"):
        MuonWithAdamW(small().parameters(), lr=-1.0)
    with pytest.raises(ValueError, match=r"^adjust_lr_fn .'half'. must be 'original' or 'match_rms_adamw'"):
        MuonWithAdamW(small().parameters(), adjust_lr_fn="half")  # type: ignore[arg-type]
