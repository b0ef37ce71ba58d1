"""Arithmetic, and values that come back as they went."""

from __future__ import annotations

import math
from contextlib import suppress
from typing import Any

import gin
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modlib.config.statements import Macro
from modlib.config.syntax import parse
from modlib.config.values import ValueProblem, evaluate, format_value, is_literal, object_name, plain

MACROS = {"D": 8, "S": "text", "L": [1], "F": 0.5}


def compute(text: str) -> Any:
    (statement,), wrong = parse(f"X = {text}", "a.gin")
    assert not wrong, wrong
    assert isinstance(statement, Macro)
    return evaluate(statement.value, MACROS.__getitem__)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2 * %D", 16),
        ("-%D", -8),
        ("+%D", 8),
        ("(1 + 2) * 3", 9),
        ("7 // 2", 3),
        ("7 / 2", 3.5),
        ("7 % 4", 3),
        ("2 ** 10", 1024),
        ("2 ** -1", 0.5),
        ("[%D * 4, {'a': %D // 2}, (%F,)]", [32, {"a": 4}, (0.5,)]),
        ("%S + '.bin'", "text.bin"),
        ("%L + [2]", [1, 2]),
        ("1e3 * 0", 0.0),
    ],
)
def test_arithmetic(text: str, expected: Any) -> None:
    result = compute(text)
    assert result == expected
    assert type(result) is type(expected)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1 / 0", "1 / 0: division by zero; correct the divisor"),
        ("%D % 0", "8 % 0: division by zero; correct the divisor"),
        ("0 ** -1", "0 ** -1: division by zero; correct the divisor"),
        ("9 ** 9 ** 9", "9 ** 387420489 has more than 4096 bits; use smaller numbers"),
        ("2 ** 4000 * 2 ** 4000", "has more than 4096 bits; use smaller numbers"),
        ("10.0 ** 400", "10.0 ** 400 is too large for a float; use smaller numbers"),
        ("1e308 * 10", "1e+308 * 10 is too large for a float; use smaller numbers"),
        ("(-1) ** 0.5", "-1 ** 0.5 is not a real number; correct the exponent"),
        ("2 * 'a'", "2 * 'a': arithmetic needs numbers, and 'a' is str"),
        ("1 + True", "1 + True: arithmetic needs numbers, and True is bool"),
        ("-@A", "-@A: arithmetic needs numbers, and @A is a component"),
        ("%L * 3", "[1] * 3: arithmetic needs numbers, and [1] is list"),
        ("{1: 2, 1: 3}", "the key 1 is twice in one dict; remove one"),
        ("{[1]: 2}", "[1] cannot be the key of a dict; use a string or a number"),
    ],
)
def test_arithmetic_error(text: str, expected: str) -> None:
    with pytest.raises(ValueProblem) as caught:
        compute(text)
    assert str(caught.value).endswith(expected)


numbers = st.integers() | st.floats(allow_nan=False)
literals = st.recursive(
    st.none() | st.booleans() | numbers | st.text() | st.binary(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(st.text(max_size=5) | st.integers(), inner, max_size=4)
    ),
    max_leaves=12,
)


def same(a: Any, b: Any) -> bool:
    """Equal, of the same types, all the way down; -0.0 is not 0.0."""
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(one, two) for one, two in zip(a.values(), b.values()))
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b and (not isinstance(a, float) or math.copysign(1, a) == math.copysign(1, b))


@given(literals)
def test_literal_round_trip(value: Any) -> None:
    assert is_literal(value)
    assert same(compute(format_value(value)), value)


@given(literals)
def test_stock_gin_reads_what_is_written(value: Any) -> None:
    assert same(gin.config.parse_value(format_value(value)), value)


def test_nan_round_trip() -> None:
    assert math.isnan(compute(format_value(float("nan"))))


@given(st.integers(-50, 50), st.integers(-50, 50), st.sampled_from(["+", "-", "*", "/", "//", "%"]))
def test_arithmetic_is_pythons(a: int, b: int, symbol: str) -> None:
    if b == 0 and symbol in ("/", "//", "%"):
        return
    assert compute(f"{a} {symbol} {b}") == eval(f"({a}) {symbol} ({b})")


@given(st.text(alphabet="1234567890+-*/%()., []{}:'ab@_=\n", max_size=30))
def test_any_text_is_a_value_or_a_problem(text: str) -> None:
    statements, wrong = parse(f"X = {text}", "a.gin")
    for statement in statements:
        if isinstance(statement, Macro) and not wrong:
            with suppress(ValueProblem):
                evaluate(statement.value, lambda name: 1)


def test_objects_have_stable_names() -> None:
    class Thing:
        pass

    assert object_name(Thing) == f"{__name__}.test_objects_have_stable_names.<locals>.Thing"
    assert object_name(Thing()).endswith("Thing object")
    assert object_name({"b", "a"}) == "set(['a', 'b'])"
    assert not is_literal(Thing)
    assert plain([Thing, 1]) == [object_name(Thing), 1]
