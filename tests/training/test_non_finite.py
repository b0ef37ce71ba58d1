"""NaN and Inf never reach the parameters."""

from __future__ import annotations

import re
from functools import partial
from typing import Any

import pytest
import torch
import torch.distributed as dist

from modlib.distributed.clipping import DummyClipper, GradientClipper, LoggingOnlyClipper
from modlib.distributed.process_group import World
from modlib.nn.losses import CLMCrossEntropyLoss
from modlib.runtime.errors import NonFiniteError
from modlib.training.step import require_finite, update
from tests.training.test_plain_loop import batch, modlib_parts, small_model
from tests.workers import run_ranks

CLIPPERS = [
    *(partial(GradientClipper, norm_type=norm_type) for norm_type in (1, 2, "inf")),
    *(partial(LoggingOnlyClipper, norm_type=norm_type) for norm_type in (1, 2, "inf")),
    DummyClipper,
]


@pytest.mark.parametrize("clipper", CLIPPERS)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_non_finite_gradient_stops_before_the_update(value: float, clipper: Any) -> None:
    parts = modlib_parts(small_model())
    parts.clipper = clipper(parts.model)
    before = {name: parameter.detach().clone() for name, parameter in parts.model.named_parameters()}
    weight = parts.model.blocks[0].attention.qkv.weight
    weight.register_hook(lambda gradient: gradient.index_fill(0, torch.tensor([0]), value))
    with pytest.raises(NonFiniteError) as caught:
        update(parts, [batch(0)], 3)
    assert "must be finite at step 3" in str(caught.value)
    assert "the parameters were not updated with it" in str(caught.value)
    assert caught.value.exit_code == 5
    for name, parameter in parts.model.named_parameters():
        assert torch.equal(parameter, before[name])


def test_a_fused_optimizer_skips_on_the_device_and_the_log_step_raises() -> None:
    parts = modlib_parts(small_model())
    parts.optimizer = torch.optim.AdamW(parts.model.parameters(), lr=1e-3, fused=True)
    parts.guard_on_device = True
    update(parts, [batch(0)], 1)
    require_finite(parts, 1)
    before = {name: parameter.detach().clone() for name, parameter in parts.model.named_parameters()}
    moments = [state["exp_avg"].clone() for state in parts.optimizer.state.values()]
    weight = parts.model.blocks[0].attention.qkv.weight
    handle = weight.register_hook(lambda gradient: gradient * float("nan"))
    update(parts, [batch(1)], 2)
    handle.remove()
    for name, parameter in parts.model.named_parameters():
        assert torch.equal(parameter, before[name])
    assert all(torch.equal(a["exp_avg"], b) for a, b in zip(parts.optimizer.state.values(), moments, strict=True))
    update(parts, [batch(2)], 3)
    assert any(not torch.equal(parameter, before[name]) for name, parameter in parts.model.named_parameters())
    with pytest.raises(NonFiniteError, match=r"were not in 1 of the steps up to 3"):
        require_finite(parts, 3)


class BrokenLoss(CLMCrossEntropyLoss):
    """A loss that is not finite on one rank; its gradients are."""

    def __init__(self, value: float, rank: int = 0) -> None:
        super().__init__()
        self.value, self.rank = value, rank

    def __call__(self, outputs: Any, targets: Any) -> Any:
        loss = super().__call__(outputs, targets)
        own = dist.get_rank() if dist.is_initialized() else 0
        return loss + self.value if own == self.rank else loss


@pytest.mark.parametrize("on_device", [False, True])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_non_finite_loss_stops_though_the_gradients_are_finite(value: float, on_device: bool) -> None:
    parts = modlib_parts(small_model(), BrokenLoss(value))
    if on_device:
        parts.optimizer = torch.optim.AdamW(parts.model.parameters(), lr=1e-3, fused=True)
        parts.guard_on_device = True
    before = {name: parameter.detach().clone() for name, parameter in parts.model.named_parameters()}
    stops = partial(update, parts, [batch(0)], 3)
    if on_device:
        stops()
        stops = partial(require_finite, parts, 3)
    with pytest.raises(NonFiniteError) as caught:
        stops()
    if on_device:
        assert "loss and grad_norm must be finite, but were not in 1 of the steps up to 3; the" in str(caught.value)
    else:
        assert re.match(rf"loss \({value}\) and grad_norm \(\d\.\d+\) must be finite at step 3; the", str(caught.value))
    for name, parameter in parts.model.named_parameters():
        assert torch.equal(parameter, before[name])


def stopped_on_ranks() -> tuple[str, bool]:
    """What a NaN loss on the second rank says here, and whether the parameters are as before."""
    world = World(rank=dist.get_rank(), local_rank=dist.get_rank(), size=2, device=torch.device("cpu"))
    parts = modlib_parts(small_model(), BrokenLoss(float("nan"), rank=1), world)
    before = [parameter.detach().clone() for parameter in parts.model.parameters()]
    with pytest.raises(NonFiniteError) as caught:
        update(parts, [batch(world.rank)], 3)
    return str(caught.value), all(map(torch.equal, before, parts.model.parameters()))


def test_a_nan_loss_on_one_rank_stops_every_rank() -> None:
    for text, untouched in run_ranks(2, stopped_on_ranks):
        assert text.startswith("loss (nan) and grad_norm (")
        assert untouched
