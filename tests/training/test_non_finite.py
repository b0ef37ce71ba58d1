"""NaN and Inf never reach the parameters."""

from __future__ import annotations

import pytest
import torch

from modlib.runtime.errors import NonFiniteError
from modlib.training.step import update
from tests.training.test_plain_loop import batch, modlib_parts, small_model


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_non_finite_gradient_stops_before_the_update(value: float) -> None:
    parts = modlib_parts(small_model())
    before = {name: parameter.detach().clone() for name, parameter in parts.model.named_parameters()}
    weight = parts.model.blocks[0].attention.qkv.weight
    weight.register_hook(lambda gradient: gradient.index_fill(0, torch.tensor([0]), value))
    with pytest.raises(NonFiniteError) as caught:
        update(parts, [batch(0)], 3)
    assert "must be finite at step 3" in str(caught.value)
    assert "the parameters were not updated" in str(caught.value)
    assert caught.value.exit_code == 5
    for name, parameter in parts.model.named_parameters():
        assert torch.equal(parameter, before[name])
