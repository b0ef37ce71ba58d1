"""Which values fit which types."""

from __future__ import annotations

import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import Enum, StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal, NewType, Optional, Protocol, TypedDict, TypeVar, Union

import pytest
import torch

from modlib.components import load_component
from modlib.config.matching import Mismatch, fit, native
from modlib.config.signatures import type_text
from modlib.config.values import Constant, Reference


class Thing: ...


class Part(Thing): ...


class Layer:
    """As a torch module: calling it runs its forward."""

    def __init__(self, size: int = 1) -> None: ...

    def __call__(self, *args: Any) -> Any: ...

    def forward(self, tokens: Any) -> Any: ...


class Rule:
    def __call__(self) -> None: ...


class AnySize:
    def __init__(self, *sizes: int) -> None: ...


class Shaped(Protocol):
    def shape(self) -> int: ...


class Colour(Enum):
    RED = 1


class Word(StrEnum):
    YES = "yes"


class Options(TypedDict):
    a: int


def makes_int() -> int:
    return 1


def makes_anything():  # type: ignore[no-untyped-def]
    return 1


def makes_any() -> Any:
    return 1


Steps = NewType("Steps", int)
Number = TypeVar("Number", int, float)
TARGETS: dict[str, Any] = {
    one.__name__: one
    for one in (Thing, Part, Layer, Rule, AnySize, makes_int, makes_anything, makes_any, torch.optim.SGD)
}
THING, THING_CALLED = Reference("Thing"), Reference("Thing", (), True)


load_component("SGD")  # what Python passes to it is in the catalogue


@pytest.mark.parametrize(
    ("value", "annotation", "fitted"),
    [
        (3, int, 3),
        (3, float, 3.0),
        (3, Optional[float], 3.0),  # noqa: UP045
        (3, Union[int, float], 3),  # noqa: UP007
        (3, float | int, 3),
        (None, int | None, None),
        (None, None, None),
        (True, bool, True),
        (True, bool | Literal["auto"], True),
        ("auto", bool | Literal["auto"], "auto"),
        ("x", str, "x"),
        ("x", Path, "x"),
        ("x", str | Path, "x"),
        (b"x", bytes, b"x"),
        (3, Steps, 3),
        (3, Annotated[int, "steps"], 3),
        (3, Number, 3),
        (3, Any, 3),
        (3, object, 3),
        (3, "an unresolved name", 3),
        ([1, 2], list[int], [1, 2]),
        ((1, 2), list[float], [1.0, 2.0]),
        ([1, 2], tuple[int, ...], (1, 2)),
        ([0.9, 1], tuple[float, float], (0.9, 1.0)),
        ([], tuple, ()),
        ([], tuple[()], ()),
        ((1, "a"), tuple[int, str], (1, "a")),
        ([1], Sequence[int], [1]),
        ((1,), Sequence[int], (1,)),
        (["a"], Iterable[str], ["a"]),
        ({"a": 1}, dict[str, float], {"a": 1.0}),
        ({"a": 1}, Mapping[str, Any], {"a": 1}),
        ({"a": 1}, dict, {"a": 1}),
        ({"a": 1}, Options, {"a": 1}),
        (THING, Callable, THING),
        (THING, Callable[..., Thing] | None, THING),
        (THING, type, THING),
        (THING, type[Thing], THING),
        (Reference("Part"), type[Thing], Reference("Part")),
        (THING, typing.Callable[[], Any], THING),
        (Reference("Layer"), Callable[[int], Any], Reference("Layer")),
        (Reference("Layer"), Callable[[], Any], Reference("Layer")),
        (Reference("AnySize"), Callable[[int, int], Any], Reference("AnySize")),
        (Reference("SGD"), Callable[[Any], Any], Reference("SGD")),
        (Reference("Layer", (), True), Callable[[int], Any], Reference("Layer", (), True)),
        (Reference("Rule", (), True), Callable[[], Any], Reference("Rule", (), True)),
        (Reference("makes_anything", (), True), Callable[[], Any], Reference("makes_anything", (), True)),
        (Reference("makes_any", (), True), Callable[..., Any], Reference("makes_any", (), True)),
        (THING, Shaped, THING),
        (THING, Any, THING),
        (THING_CALLED, Thing, THING_CALLED),
        (THING_CALLED, Thing | None, THING_CALLED),
        ([THING, THING_CALLED], Sequence[Any], [THING, THING_CALLED]),
        ([THING], list[Callable[..., Any]], [THING]),
        (Reference("makes_int", (), True), int, Reference("makes_int", (), True)),
        (Reference("makes_int", (), True), float, Reference("makes_int", (), True)),
        (Reference("makes_anything", (), True), int, Reference("makes_anything", (), True)),
        (Constant("X"), int, Constant("X")),
        ("yes", Word, "yes"),
        (1, Literal[1, "a"], 1),
    ],
)
def test_fits(value: Any, annotation: Any, fitted: Any) -> None:
    result = fit(value, annotation, TARGETS.__getitem__)
    assert result == fitted
    assert type(result) is type(fitted)


@pytest.mark.parametrize(
    ("value", "annotation", "expected"),
    [
        (True, int, "int"),
        (True, float, "float"),
        (1.5, int, "int"),
        (1, str, "str; write '1'"),
        ("1", int, "int; write 1"),
        ("a", bytes, "bytes"),
        (None, int, "int"),
        (0, None, "None"),
        (True, Literal[1], "1"),
        ("b", Literal["a", "c"], "'a' or 'c'"),
        ("abc", Sequence[str], "Sequence[str]; write ['abc']"),
        ("abc", list[str], "list[str]; write ['abc']"),
        ({"a": 1}, list[str], "list[str]"),
        ([1, None], list[int], "int at [1], where None is None"),
        ([[1], ["x"]], list[list[int]], "int at [0], where 'x' is str at [1], where ['x'] is list"),
        ((1, 2, 3), tuple[int, int], "tuple[int, int] (2 values, not 3)"),
        ({"a": "x"}, dict[str, int], "int at ['a'], where 'x' is str"),
        (3, Callable[..., Any], "a component, as in @Name"),
        (THING, int, "int"),
        (THING, str | None, "str or None"),
        (THING, list[int], "list[int]"),
        (THING, Thing, "Thing; write @Thing() to pass what it makes"),
        (THING_CALLED, Callable[..., Any], "a component, not what it makes; write @Thing without ()"),
        (Reference("Layer", (), True), Callable[[], Any], "a component, not what it makes; write @Layer without ()"),
        (THING, Callable[[int], Any], "one that is called with 1 argument; Thing takes none"),
        (Reference("Layer"), Callable[[int, int], Any], "one that is called with 2 arguments; Layer takes none"),
        (Reference("SGD"), Callable[[], Any], "one that is called with no argument; SGD takes params"),
        (THING_CALLED, int, "int"),
        (Reference("makes_int", (), True), str, "str"),
        (Reference("makes_int"), int, "int"),
        (THING, type[Part], "a kind of Part"),
        (3, Thing, "Thing, which a component makes, as in @Name()"),
        (2, Colour, "one of [1]"),
        ("no", Word, "one of ['yes']"),
        (3, Path, "a path in quotes"),
        ([1], Options, "dict"),
    ],
)
def test_does_not_fit(value: Any, annotation: Any, expected: str) -> None:
    with pytest.raises(Mismatch) as caught:
        fit(value, annotation, TARGETS.__getitem__)
    assert str(caught.value) == expected


def test_native() -> None:
    assert native("x", Path) == Path("x")
    assert native("x", Path | None) == Path("x")
    assert native("x", str | Path) == "x"
    assert native("x", Any) == "x"
    assert native("yes", Word) is Word.YES
    assert native(True, Path) is True


def test_type_text() -> None:
    assert type_text(Optional[float]) == "float | None"  # noqa: UP045
    assert type_text(Callable[..., Any] | None) == "a component | None"
    assert type_text(Literal["a", "b"]) == "'a' or 'b'"
    assert type_text(dict[str, list[int]]) == "dict[str, list[int]]"
    assert type_text(tuple[int, ...]) == "tuple[int, ...]"
    assert type_text(Annotated[int, 1]) == "int"
