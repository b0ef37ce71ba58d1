"""Where weights come from: said on meta, done in memory, in order, and nothing left over."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from modlib.models.initialization import ComposedInitializer
from modlib.models.weights import (
    add_weights,
    check_initialization,
    initialize,
    named_state,
    parameter_names,
    weight_sources,
)
from modlib.runtime.errors import ConfigError


class Plain(nn.Module):
    """A weight, a bias and two buffers, one of them not saved."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(2, 2)
        self.register_buffer("kept", torch.zeros(2))
        self.register_buffer("computed", torch.zeros(2), persistent=False)


class Tied(Plain):
    """The same with a second name for the weight; `to_empty` makes it a weight of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.second = nn.Linear(2, 2, bias=False)
        self.second.weight = self.first.weight


def on_meta(kind: type[Plain] = Plain) -> Plain:
    with torch.device("meta"):
        return kind()


def fill_with(value: float, calls: list[int] | None = None) -> Any:
    def fill(model: nn.Module, seed: int) -> None:
        if calls is not None:
            calls.append(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.fill_(value)

    return fill


def test_sources_wait_for_memory_and_fill_in_order() -> None:
    model, calls = on_meta(), []
    add_weights(model, fill_with(1.0, calls))
    add_weights(model, fill_with(2.0, calls))
    assert calls == []
    assert [sorted(source.names) for source in weight_sources(model)] == [["first.bias", "first.weight"]] * 2
    model.to_empty(device="cpu")
    initialize(model, None, 7)
    assert calls == [7, 7]
    assert model.first.bias[0].item() == 2.0
    assert weight_sources(model) == []


def test_a_model_in_memory_is_filled_at_once() -> None:
    model, calls = Plain(), []
    add_weights(model, fill_with(3.0, calls), seed=5)
    assert (calls, model.first.bias[0].item(), weight_sources(model)) == ([5], 3.0, [])


def test_the_rest_is_initialised_and_nothing_else() -> None:
    seen: list[Any] = []

    def initialization(model: nn.Module, seed: int, skip: Any = ()) -> None:
        seen.append((seed, sorted(skip)))

    initialize(Plain(), initialization, 1)
    model = on_meta()
    add_weights(model, fill_with(0.0), ["first.bias"])
    model.to_empty(device="cpu")
    initialize(model, initialization, 2)
    whole = on_meta()
    add_weights(whole, fill_with(0.0))
    whole.to_empty(device="cpu")
    initialize(whole, initialization, 3)
    assert seen == [(1, []), (2, ["first.bias"])]


def test_a_tie_that_was_lost_is_found() -> None:
    model = on_meta(Tied)
    add_weights(model, fill_with(0.0))
    model.to_empty(device="cpu")
    with pytest.raises(ConfigError, match=r"1 parameters of Tied \(second.weight\) that nothing else sets"):
        initialize(model, None, 0)


def test_a_parameter_that_nothing_sets_is_an_error() -> None:
    with pytest.raises(
        ConfigError,
        match=r"^initialization \(None\) must be given for 2 parameters of Plain \(first.weight, first.bias\) that "
        r"nothing else sets; set train.initialization = @ComposedInitializer$",
    ):
        initialize(Plain(), None, 0)


def test_on_meta_it_is_known_what_initialising_would_refuse() -> None:
    model = on_meta()
    with pytest.raises(ConfigError, match=r"for 2 parameters of Plain"):
        check_initialization(model, None)
    plain = ComposedInitializer(weight_init_type="plain", rules={"first.weight": 0.5})
    check_initialization(model, plain)
    with pytest.raises(ConfigError, match=r"residual_outputs \(.*\) must name a matrix of Plain"):
        check_initialization(model, ComposedInitializer())
    add_weights(model, fill_with(0.0), ["first.weight"])
    with pytest.raises(ConfigError, match=r"rules \('first.weight'\) must match .* that no other source sets"):
        check_initialization(model, plain)
    check_initialization(model, lambda model, seed, skip: pytest.fail("it is not called"))


def test_names_are_plain_and_a_tied_parameter_has_one() -> None:
    model = Tied()
    assert parameter_names(model) == ["first.weight", "first.bias"]
    assert sorted(named_state(model)) == ["first.bias", "first.weight", "kept", "second.weight"]
    compiled: Any = torch.compile(model)
    assert parameter_names(compiled) == ["first.weight", "first.bias"]
    assert named_state(compiled)["first.bias"] is model.first.bias
