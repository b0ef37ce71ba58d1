"""The one reader of JSON: every JSON file and JSON text that modlib reads passes here.

Whatever is wrong with it, from a missing file to a value of another type deep inside, is one error: `JSONError`, whose
text names the file and the place in it. A caller turns it into the error of its own class, or does without the file.
"""

from __future__ import annotations

import functools
import json
import math
import os
import stat
import typing
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, NoReturn, TypeVar, Union, get_args, get_origin

from modlib.runtime.errors import ModlibError

T = TypeVar("T")

MOST_DEPTH = 100  # objects and lists inside each other; no file that modlib writes has ten
MOST_BYTES = 256 << 20  # the largest tokenizers and indices have some 50 MB
MOST_DIGITS = 4000  # Python reads longer ones in quadratic time, or not at all
MOST_NUMBER = 1 << 64  # whole numbers are below: seeds fit, and every one becomes a float


class JSONError(ModlibError, ValueError):
    """A JSON file or text is not what it must be.

    Args:
        place: The file, or the name of the text.
        problem: Completes the place to a sentence.
        missing: There is no such file.
    """

    def __init__(self, place: str, problem: str, *, missing: bool = False) -> None:
        super().__init__(f"{place} {problem}")
        self.place, self.problem, self.missing = place, problem, missing

    def __reduce__(self):  # the default would pass the joined text alone
        return functools.partial(JSONError, missing=self.missing), (self.place, self.problem)


def read_json(path: Path | str, schema: type[T], *, most_bytes: int = MOST_BYTES, finite: bool = False) -> T:
    """The value in a JSON file.

    Args:
        path: A regular file, in UTF-8.
        schema: What it must be; see `parse_json`.
        most_bytes: A larger file is refused unread.
        finite: Refuse NaN, infinity and numbers that are too large for a float.

    Raises:
        JSONError: It is not there, cannot be read, or is not such a value.
    """
    data = read_bytes(path, most_bytes)
    return parse_json(data, schema, place=str(path), finite=finite)


def read_bytes(path: Path | str, most_bytes: int = MOST_BYTES) -> bytes:
    """The bytes of a regular file; a pipe, a device or a folder in its place is an error, and is not waited for.

    Raises:
        JSONError: It is not there, cannot be read, or is too large.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise JSONError(str(path), "must be a regular file; move away what is in its place")
            if status.st_size > most_bytes:
                raise JSONError(str(path), f"must be JSON of at most {most_bytes} bytes; it has {status.st_size}")
            with open(descriptor, "rb", closefd=False) as file:
                return file.read()
        finally:
            os.close(descriptor)
    except OSError as error:
        missing = isinstance(error, (FileNotFoundError, NotADirectoryError))
        raise JSONError(str(path), f"must be a readable file: {error.strerror}", missing=missing) from error


def parse_json(text: str | bytes, schema: type[T], *, place: str = "text", finite: bool = False) -> T:
    """The value that a JSON text stands for.

    Args:
        text: JSON; bytes must be UTF-8.
        schema: What it must be, as a type: `int`, `float` (whole numbers too), `str`, `bool`, `dict[str, int]`,
            `list[str]`, `X | None`, `Any` (whole numbers of thousands of digits are Decimals), or a TypedDict, whose
            keys may be joined by unknown ones.
        place: Names the text in errors.
        finite: Refuse NaN, infinity and numbers that are too large for a float.

    Raises:
        JSONError: It is no JSON, nested more than MOST_DEPTH deep, or not such a value.
    """
    value = _parsed(text, place, finite, long_numbers=schema is Any)
    if (misfit := _misfit(value, schema, ())) is not None:
        raise JSONError(place, f"must have {misfit}")
    return value  # type: ignore[no-any-return]


def _parsed(text: str | bytes, place: str, finite: bool, long_numbers: bool) -> Any:
    opened = text.count(b"[") + text.count(b"{") if isinstance(text, bytes) else text.count("[") + text.count("{")
    try:
        decoded = text.decode("utf-8") if isinstance(text, bytes) else text
        value = _loaded(decoded, finite, long_numbers)
        too_deep = opened > MOST_DEPTH and _is_deeper(value, MOST_DEPTH)
    except RecursionError:
        too_deep = True
    except UnicodeDecodeError as error:
        raise JSONError(place, f"must be UTF-8; byte {error.start} is not") from error
    except json.JSONDecodeError as error:
        at = f"line {error.lineno}, column {error.colno}"
        raise JSONError(place, f"must be JSON: {error.msg[:1].lower()}{error.msg[1:]} ({at})") from error
    except ValueError as error:  # a whole number of thousands of digits
        raise JSONError(place, f"must be JSON with numbers that can be used: {error}") from error
    if too_deep:
        raise JSONError(place, f"must be JSON of at most {MOST_DEPTH} levels of objects and lists; it has more")
    return value


def _loaded(text: str, finite: bool, long_numbers: bool) -> Any:
    if finite:
        return json.loads(text, parse_constant=_refuse, parse_float=_finite)
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        raise
    except ValueError:  # a whole number of thousands of digits, in a field that maybe nobody asks for
        if not long_numbers:
            raise
        return json.loads(text, parse_int=_whole_number)


def _whole_number(digits: str) -> int | Decimal:
    return int(digits) if len(digits) <= MOST_DIGITS else Decimal(digits)


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not finite")


def _finite(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError(f"{digits} is not finite")
    return number


def _is_deeper(value: Any, most: int) -> bool:
    level = [value]
    for _ in range(most):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer if isinstance(outer, list) else ())
            if isinstance(inner, (dict, list))
        ]
        if not level:
            return False
    return True


@dataclass(frozen=True)
class _Misfit:
    """A value that is not what the schema says: where, what had to be there, what is."""

    path: tuple[str, ...]
    wanted: str
    found: str = ""

    def __str__(self) -> str:
        at = f" at {'.'.join(self.path)}" if self.path else ""
        return f"{self.wanted}{at}" + (f", and has {self.found}" if self.found else "")


_WORDS = {
    int: "a whole number", float: "a number", str: "a text", bool: "true or false", NoneType: "null",
    dict: "an object", list: "a list",
}  # fmt: skip


def _misfit(value: Any, schema: Any, path: tuple[str, ...]) -> _Misfit | None:
    """The first place where a value differs from a schema; None where it fits."""
    if schema is Any:
        return None
    origin, arguments = get_origin(schema), get_args(schema)
    plain = origin or schema
    if plain in (Union, UnionType):
        misfits = [_misfit(value, one, path) for one in arguments]
        if None in misfits:
            return None
        inner = next((misfit for misfit in misfits if misfit is not None and len(misfit.path) > len(path)), None)
        return inner or _Misfit(
            path, " or ".join(_WORDS.get(get_origin(one) or one, "an object") for one in arguments), _shown(value)
        )
    if plain is Literal:
        fits = any(value == one and type(value) is type(one) for one in arguments)
        return None if fits else _Misfit(path, f"one of {', '.join(map(repr, arguments))}", _shown(value))
    if typing.is_typeddict(plain):
        return _misfit(value, dict, path) or _misfit_of_keys(value, plain, path)
    if type(value) is not plain and not (plain is float and type(value) is int):
        return _Misfit(path, _WORDS[plain], _shown(value))
    if type(value) is int and abs(value) >= MOST_NUMBER:
        return _Misfit(path, f"{_WORDS[plain]} of at most 64 bits", _shown(value))
    if not arguments or arguments[-1] is Any:
        return None
    parts = value.items() if plain is dict else enumerate(value)
    found = (_misfit(part, arguments[-1], (*path, str(key))) for key, part in parts)
    return next((misfit for misfit in found if misfit is not None), None)


def _misfit_of_keys(value: dict[str, Any], schema: Any, path: tuple[str, ...]) -> _Misfit | None:
    for key, wanted in _hints(schema).items():
        if key in value:
            if (misfit := _misfit(value[key], wanted, (*path, key))) is not None:
                return misfit
        elif key in schema.__required_keys__:
            return _Misfit(path, f"'{key}'")
    return None


@functools.cache
def _hints(schema: Any) -> dict[str, Any]:
    return typing.get_type_hints(schema)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
