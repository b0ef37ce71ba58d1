"""Values of a gin file: the expressions that may be written, what they evaluate to, and how to write them back."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import PurePath
from typing import Any

MAX_POWER_BITS = 4096


@dataclass(frozen=True)
class Reference:
    """`@scope/Name` or, called, `@scope/Name()`; also a node, since it stands for itself."""

    selector: str
    scope: tuple[str, ...] = ()
    called: bool = False

    def __str__(self) -> str:
        return f"@{'/'.join((*self.scope, self.selector))}{'()' if self.called else ''}"


@dataclass(frozen=True)
class Constant:
    """`%NAME` of a gin constant whose value is an object without a literal."""

    name: str

    def __str__(self) -> str:
        return f"%{self.name}"


@dataclass(frozen=True)
class Required:
    """`%gin.REQUIRED`: somebody has to give a value."""

    def __str__(self) -> str:
        return "%gin.REQUIRED"


@dataclass(frozen=True)
class Literal:
    """A number, string, bytes, True, False or None."""

    value: Any


@dataclass(frozen=True)
class MacroUse:
    """`%NAME`."""

    name: str


@dataclass(frozen=True)
class Items:
    """A list or a tuple."""

    kind: type
    items: tuple[Node, ...]


@dataclass(frozen=True)
class Pairs:
    """A dict."""

    items: tuple[tuple[Node, Node], ...]


@dataclass(frozen=True)
class Operation:
    """Arithmetic on one or two operands, or `+=`: a list with more items."""

    symbol: str
    operands: tuple[Node, ...]


Node = Literal | Reference | MacroUse | Items | Pairs | Operation


class ValueProblem(Exception):
    """A value that cannot be computed; the text says why, without its place."""


class UnknownMacro(ValueProblem):
    """A macro that nobody defines; reported where it is used."""


UNARY: dict[str, Callable[[Any], Any]] = {"-": operator.neg, "+": operator.pos}
BINARY: dict[str, Callable[[Any, Any], Any]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
    "//": operator.floordiv,
    "%": operator.mod,
    "**": operator.pow,
}


def children(node: Node) -> tuple[Node, ...]:
    """The nodes directly inside a node."""
    match node:
        case Items(items=items):
            return items
        case Pairs(items=items):
            return tuple(part for pair in items for part in pair)
        case Operation(operands=operands):
            return operands
    return ()


def walk(node: Node) -> Iterator[Node]:
    """A node and everything inside it."""
    yield node
    for child in children(node):
        yield from walk(child)


def evaluate(node: Node, macro: Callable[[str], Any]) -> Any:
    """Compute a node.

    Args:
        node: What was written.
        macro: Gives the value of a macro by name.

    Raises:
        ValueProblem: Division by zero, a number too large, operands that do not go together.
    """
    match node:
        case Literal(value=value):
            return value
        case Reference():
            return node
        case MacroUse(name=name):
            return macro(name)
        case Items(kind=kind, items=items):
            return kind(evaluate(item, macro) for item in items)
        case Pairs(items=items):
            return _as_dict([(evaluate(key, macro), evaluate(value, macro)) for key, value in items])
        case Operation(symbol=symbol, operands=operands):
            return _compute(symbol, [evaluate(operand, macro) for operand in operands])
    raise AssertionError(node)


def _as_dict(items: list[tuple[Any, Any]]) -> dict[Any, Any]:
    made: dict[Any, Any] = {}
    for key, value in items:
        try:
            if key in made:
                raise ValueProblem(f"the key {format_value(key)} is twice in one dict; remove one")
        except TypeError:
            raise ValueProblem(f"{format_value(key)} cannot be the key of a dict; use a string or a number") from None
        made[key] = value
    return made


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _compute(symbol: str, operands: list[Any]) -> Any:
    written = (
        f" {symbol} ".join(map(format_value, operands)) if len(operands) > 1 else symbol + format_value(operands[0])
    )
    if symbol == "+=":
        return _extended(*operands)
    joined = symbol == "+" and len(operands) == 2 and type(operands[0]) is type(operands[1]) in (str, list, tuple)
    if any(isinstance(operand, Required) for operand in operands):
        return Required()
    if not joined and not all(map(_is_number, operands)):
        wrong = next(operand for operand in operands if not _is_number(operand))
        raise ValueProblem(f"{written}: arithmetic needs numbers, and {format_value(wrong)} is {type_name(wrong)}")
    if symbol == "**":
        _check_power(operands[0], operands[1], written)
    try:
        result = UNARY[symbol](*operands) if len(operands) == 1 else BINARY[symbol](*operands)
    except ZeroDivisionError:
        raise ValueProblem(f"{written}: division by zero; correct the divisor") from None
    except OverflowError:
        raise ValueProblem(f"{written} is too large for a float; use smaller numbers") from None
    if isinstance(result, complex):
        raise ValueProblem(f"{written} is not a real number; correct the exponent")
    if isinstance(result, float) and math.isinf(result) and not any(map(math.isinf, operands)):
        raise ValueProblem(f"{written} is too large for a float; use smaller numbers")
    if isinstance(result, int) and result.bit_length() > MAX_POWER_BITS:
        raise ValueProblem(f"{written} has more than {MAX_POWER_BITS} bits; use smaller numbers")
    return result


def _extended(before: Any, more: Any) -> Any:
    """A list with what is not in it yet: a file that adds something may be given twice."""
    for operand in (before, more):
        if not isinstance(operand, list | tuple):
            raise ValueProblem(f"+= adds items to a list, and {format_value(operand)} is {type_name(operand)}; use =")
    added = list(before)
    for item in more:
        if item not in added:
            added.append(item)
    return type(before)(added)


def _check_power(base: int | float, exponent: int | float, written: str) -> None:
    if isinstance(base, int) and isinstance(exponent, int) and abs(base) > 1 and exponent > 0:
        bits = base.bit_length() * exponent
        if bits > MAX_POWER_BITS:
            raise ValueProblem(f"{written} has more than {MAX_POWER_BITS} bits; use smaller numbers")


def type_name(value: Any) -> str:
    """What a value is, in the words of an error text."""
    match value:
        case Reference(called=False):
            return "a component"
        case Reference():
            return "the result of a component"
        case Constant():
            return "a constant"
        case None:
            return "None"
    return type(value).__name__


def format_value(value: Any) -> str:
    """Write a value so that parsing it gives the same value again."""
    match value:
        case Reference() | Constant() | Required():
            return str(value)
        case bool() | None | bytes():
            return repr(value)
        case Enum():
            return object_name(value)
        case float():
            return _format_float(value)
        case int():
            return int.__repr__(value)
        case str():
            return str.__repr__(value)
        case list():
            return f"[{', '.join(map(format_value, value))}]"
        case tuple():
            return f"({', '.join(map(format_value, value))}{',' if len(value) == 1 else ''})"
        case dict():
            return f"{{{', '.join(f'{format_value(key)}: {format_value(item)}' for key, item in value.items())}}}"
        case PurePath():
            return repr(str(value))
    return object_name(value)


def _format_float(value: float) -> str:
    if math.isnan(value):
        return "float('nan')"
    if math.isinf(value):  # gin has no word for it; a literal that overflows is one that it can read
        return "1e999" if value > 0 else "-1e999"
    return float.__repr__(value)


def is_literal(value: Any) -> bool:
    """Whether a value can be written in a gin file and read back as itself."""
    match value:
        case Enum():
            return False
        case Reference() | Constant() | None:
            return True
    kind = type(value)
    if kind in (list, tuple):
        return all(map(is_literal, value))
    if kind is dict:
        return all(is_literal(key) and is_literal(item) for key, item in value.items())
    return kind in (bool, int, float, str, bytes)


def object_name(value: Any) -> str:
    """A stable name for an object without a literal: no memory addresses."""
    if isinstance(value, Enum):
        return f"{type(value).__module__}.{type(value).__qualname__}.{value.name}"
    if hasattr(value, "__qualname__") and hasattr(value, "__module__"):
        return f"{value.__module__}.{value.__qualname__}"
    if isinstance(value, set | frozenset):  # their order changes from process to process
        return f"{type(value).__name__}([{', '.join(sorted(map(format_value, value)))}])"
    written = repr(value)
    if re.search(r" at 0x[0-9a-fA-F]+", written) or len(written) > 200:
        return f"{type(value).__module__}.{type(value).__qualname__} object"
    return written


def plain(value: Any) -> Any:
    """A value for people and machines outside gin: references and objects become their names."""
    match value:
        case list():
            return [plain(item) for item in value]
        case tuple():
            return tuple(plain(item) for item in value)
        case dict():
            return {plain(key): plain(item) for key, item in value.items()}
    return value if type(value) in (bool, int, float, str, bytes, type(None)) else format_value(value)
