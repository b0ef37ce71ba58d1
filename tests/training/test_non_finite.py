"""NaN and Inf never reach the parameters."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch

from modlib.distributed.clipping import DummyClipper, GradientClipper, LoggingOnlyClipper
from modlib.runtime.errors import NonFiniteError
from modlib.training.step import require_finite, update
from tests.training.test_plain_loop import batch, modlib_parts, small_model

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
    with pytest.raises(NonFiniteError, match=r"was not in 1 of the steps up to 3"):
        require_finite(parts, 3)
