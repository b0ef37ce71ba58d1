"""Every optimizer of the catalogue over parameters sharded by FSDP2: the numbers of one process, or a clear refusal."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from modlib.components import OPTIMIZERS, load_component
from modlib.models.gpt2 import GPT2
from modlib.models.initialization import ComposedInitializer
from modlib.optim.groups import DecayGroups
from modlib.runtime.errors import ConfigError
from tests.optim.test_muon import train
from tests.workers import run_ranks


def trained(name: str, sharded: bool) -> torch.Tensor | str:
    model: nn.Module = GPT2(vocab_size=31, seq_len=8, num_layers=1, num_heads=2, dim=12)
    if sharded:
        fully_shard(model, mesh=init_device_mesh("cpu", (torch.distributed.get_world_size(),)))
    ComposedInitializer()(model, 0)
    for parameter in model.parameters():
        parameter.requires_grad_(name != "Muon" or parameter.ndim == 2)
    optimizer = load_component(name).target
    assert optimizer is not None
    try:
        return train(model, [optimizer(DecayGroups()(model), lr=1e-3)], last=3)
    except ConfigError as error:
        return str(error)


def all_trained(names: list[str]) -> list[torch.Tensor | str]:
    return [trained(name, True) for name in names]


@pytest.mark.slow
def test_two_ranks_equal_one_process() -> None:
    ranks = run_ranks(2, all_trained, list(OPTIMIZERS))
    for name, *found in zip(OPTIMIZERS, *ranks, strict=True):
        expected = trained(name, False)
        assert isinstance(expected, torch.Tensor)
        # torch's Muon iterates in bfloat16, and sums its products in another order over shards; MuonWithAdamW does not
        tolerance = 1e-3 if name == "Muon" else 1e-6
        for tensor in found:
            assert (tensor - expected).abs().max() < tolerance, name


@pytest.mark.parametrize("name", ["Adafactor", "Rprop"])
def test_those_that_torch_cannot_run_on_shards_are_refused(name: str) -> None:
    assert isinstance(trained(name, False), torch.Tensor)
    assert (
        run_ranks(2, trained, name, True)
        == [
            f"optimizer ({name}) must have whole parameters: torch cannot update sharded ones with it; train in one "
            "process, or choose another, such as AdamW"
        ]
        * 2
    )
