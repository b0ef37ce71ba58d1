"""Where the text of a document is in a row of data: a path into it, or a function."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Sequence
from decimal import Decimal
from functools import cache
from typing import Any

from modlib.runtime.errors import ConfigError
from modlib.runtime.json_files import JSONError, parse_json

_FUNCTION = re.compile(r"([A-Za-z_][\w.]*):([A-Za-z_]\w*)")
_PATH = re.compile(r"\.?[^.\[\]]+(\[\d+\])*(\.[^.\[\]]+(\[\d+\])*)*")


class Field:
    """Takes the text out of rows. Survives pickling.

    Args:
        name: A path as in jq (`text`, `a.b[0].c`), or `module:function` for a function that is given the row (of a
            text file: the text) and returns the text.
        beside: Outermost names that are wanted as well, where rows have them.

    Raises:
        ConfigError: It is neither, or there is no such function.
    """

    def __init__(self, name: str, beside: Sequence[str] = ()) -> None:
        self.name = name
        self.beside = tuple(beside)
        self.function: Callable[[Any], Any] | None = None
        if ":" in name:
            self.function = _function(name)
        elif not _PATH.fullmatch(name):
            raise ConfigError(f"field ('{name}') must be a path such as text or a.b[0].c, or module:function")

    def __reduce__(self) -> tuple[Any, ...]:
        return (Field, (self.name, self.beside))

    @property
    def column(self) -> str | None:
        """The outermost name; None when a function looks at the whole row."""
        return None if self.function is not None else steps_of(self.name)[0]

    @property
    def whole(self) -> str:
        """The path as one name, as a column may be called; empty for a function."""
        return "" if self.function is not None else self.name.removeprefix(".")

    def text(self, row: Any) -> str:
        """The text of one row.

        Raises:
            ValueError: There is none; the message completes "line 3 ...".
        """
        found = _checked(self.value(row), self.name)
        if not found:
            raise ValueError(f"has an empty text at '{self.name}'")
        return found

    def value(self, row: Any) -> Any:
        """What is there in one row, of any type.

        Raises:
            ValueError: There is none; the message completes "line 3 ...".
        """
        if self.function is None:
            return value_at(row, self.name)
        try:
            return self.function(row)
        except Exception as error:
            raise ValueError(f"makes {self.name} fail ({type(error).__name__}: {error})") from error


def _function(name: str) -> Callable[[Any], Any]:
    match = _FUNCTION.fullmatch(name)
    if match is None:
        raise ConfigError(f"field ('{name}') must be a path such as text or a.b[0].c, or module:function")
    try:
        found = getattr(importlib.import_module(match[1]), match[2], None)
    except ImportError as error:
        raise ConfigError(f"field ('{name}') must name a module that can be imported; {error}") from error
    if not callable(found):
        raise ConfigError(f"field ('{name}') must name a function of {match[1]}; it has no function {match[2]}")
    return found  # type: ignore[no-any-return]


@cache
def steps_of(path: str) -> tuple[str, ...]:
    """`.a.b[0].c` -> a, b, 0, c."""
    return tuple(re.sub(r"\[(\d+)\]", r".\1", path).removeprefix(".").split("."))


def text_of(line: bytes, key: str) -> str:
    """The text in one line.

    Args:
        line: A JSON object, in UTF-8.
        key: Names of fields from the outside in, joined by dots; a number is a place in a list, from 0, and may be
            written [0] as well. A dot before the first is allowed, as in jq.

    Raises:
        ValueError: The line is not JSON, has no such field, or holds no text there; the message completes "line 3 ...".
    """
    return text_at(row_of(line), key)


def row_of(line: bytes) -> Any:
    """The value of one line of JSON.

    Raises:
        ValueError: It is not JSON in UTF-8; the message completes "line 3 ...".
    """
    try:
        return parse_json(line, Any)
    except JSONError as error:
        raise ValueError(error.problem) from error


def text_at(value: Any, key: str) -> str:
    """The text at a path in a row; see `text_of`."""
    return _checked(value_at(value, key), key)


def value_at(value: Any, key: str) -> Any:
    """What is at a path in a row; see `text_of`. A field that has the whole path, or its rest, as its name is first."""
    whole = key.removeprefix(".")
    if isinstance(value, dict) and whole in value:
        return value[whole]
    steps = steps_of(key)
    for number, part in enumerate(steps):
        if isinstance(value, dict) and (rest := ".".join(steps[number:])) in value:
            return value[rest]
        if isinstance(value, dict) and part in value:
            value = value[part]
        elif isinstance(value, list) and part.isdecimal() and int(part) < len(value):
            value = value[int(part)]
        else:
            raise ValueError(f"has no '{key}' ({_there(value)})")
    return value


def _checked(value: Any, key: str) -> str:
    if isinstance(value, bytes):  # a Parquet column of texts that its writer did not mark as such
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"has bytes at '{key}' that are no UTF-8 text (byte {error.start})") from error
    if not isinstance(value, str):
        raise ValueError(f"has no text at '{key}' but {kind_of(value)}")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:  # "\ud800" is valid JSON
        raise ValueError(f"has half of a surrogate pair at '{key}' (character {error.start})") from error
    return value


def kind_of(value: Any) -> str:
    """What a value is, as a reader of JSON calls it."""
    if isinstance(value, Decimal):
        return "int"
    return "null" if value is None else type(value).__name__


def _there(value: Any) -> str:
    if isinstance(value, dict):
        return f"there is {', '.join(list(value)[:8]) or 'nothing'}"
    return f"a list of {len(value)}" if isinstance(value, list) else f"there is {kind_of(value)}"
