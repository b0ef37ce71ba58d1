import pytest
from hypothesis import given
from hypothesis import strategies as st

from modlib.data.batches.layout import batch_layout
from modlib.runtime.errors import ConfigError


def test_global_batch_follows_from_the_world_when_it_is_not_given() -> None:
    layout = batch_layout(8, 2, None, 4)
    assert layout.global_batch_size == 64


def test_given_global_batch_fixes_the_accumulation() -> None:
    assert batch_layout(8, 1, 64, 2).grad_accum_steps == 4


@given(st.integers(1, 64), st.integers(1, 64), st.integers(1, 8))
def test_a_multiple_always_fits(micro: int, accumulation: int, world: int) -> None:
    layout = batch_layout(micro, 1, micro * accumulation * world, world)
    assert (layout.micro_batch_size, layout.grad_accum_steps) == (micro, accumulation)


def test_what_does_not_divide_is_refused_with_the_nearest_valid() -> None:
    with pytest.raises(ConfigError) as caught:
        batch_layout(8, 1, 480, 64)
    assert str(caught.value) == (
        "global_batch_size (480) must be a multiple of micro_batch_size (8) x 64 processes = 512; "
        "nearest valid: 512, or micro_batch_size (none on 64 processes)"
    )
    with pytest.raises(ConfigError, match=r"nearest valid: 16 or 32, or micro_batch_size 5"):
        batch_layout(8, 1, 20, 2)
