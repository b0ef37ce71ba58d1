"""Does a value fit a type? Says what is wrong in words, and brings the value into the form of the type."""

from __future__ import annotations

import collections.abc
import inspect
import math
import numbers
import os
import types
import typing
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Any

from modlib.components import CATALOGUE
from modlib.config.signatures import NOTHING, is_callable_type, is_union, return_type, type_text
from modlib.config.suggestions import similar
from modlib.config.values import Constant, Reference, format_value, type_name

ANYTHING = (Any, object, NOTHING, typing.Hashable, collections.abc.Hashable)
LITERAL_TYPES = (int, float, bool, str, bytes, complex, type(None), list, tuple, dict, set, frozenset)
SEQUENCES: tuple[Any, ...] = (
    list,
    collections.abc.Sequence,
    collections.abc.MutableSequence,
    collections.abc.Iterable,
    collections.abc.Collection,
    collections.abc.Container,
    collections.abc.Reversible,
)
MAPPINGS = (dict, collections.abc.Mapping, collections.abc.MutableMapping)


class Mismatch(Exception):
    """The value does not fit; the text is what was expected, perhaps with a remedy after `;`."""


def fit(value: Any, annotation: Any, target_of: Callable[[str], Any]) -> Any:
    """The value in the form of the type: an int for a float becomes a float, a list for a tuple a tuple.

    Args:
        value: An evaluated value; may hold references.
        annotation: The type.
        target_of: Gives the class or function of a component by name.

    Raises:
        Mismatch: The value does not fit the type.
    """
    annotation = _plain_type(annotation)
    if _takes_anything(annotation) or isinstance(value, Constant):
        return value
    if is_union(annotation):
        return _fit_union(value, typing.get_args(annotation), target_of)
    if typing.get_origin(annotation) is typing.Literal:
        return _fit_choice(value, typing.get_args(annotation))
    if isinstance(value, Reference):
        return _fit_reference(value, annotation, target_of)
    origin, arguments = typing.get_origin(annotation) or annotation, typing.get_args(annotation)
    if annotation is None or annotation is type(None):
        return _require(value is None, value, "None")
    if is_callable_type(annotation):
        hint = f"; write @{value}" if isinstance(value, str) and value.isidentifier() else ""
        raise Mismatch(f"a component, as in @Name{hint}")
    if origin is tuple:
        return _fit_tuple(value, arguments, annotation, target_of)
    if origin in SEQUENCES or origin in (set, frozenset, collections.abc.Set):
        return _fit_sequence(value, arguments[0] if arguments else Any, annotation, target_of)
    if origin in MAPPINGS:
        return _fit_mapping(value, arguments or (Any, Any), annotation, target_of)
    return _fit_plain(value, origin, annotation)


def _plain_type(annotation: Any) -> Any:
    """The type under Annotated, NewType, a type alias or a TypeVar."""
    while True:
        if typing.get_origin(annotation) in (typing.Annotated, typing.Final, typing.Required, typing.NotRequired):
            annotation = typing.get_args(annotation)[0]
        elif hasattr(annotation, "__supertype__"):
            annotation = annotation.__supertype__
        elif type(annotation).__name__ == "TypeAliasType":
            annotation = annotation.__value__
        elif isinstance(annotation, typing.TypeVar):
            annotation = annotation.__bound__ or (
                typing.Union[annotation.__constraints__] if annotation.__constraints__ else Any  # noqa: UP007
            )
        else:
            return annotation


def _takes_anything(annotation: Any) -> bool:
    unresolved = isinstance(annotation, str | typing.ForwardRef)
    return unresolved or any(annotation is accepted for accepted in ANYTHING)


def _require(fits: bool, value: Any, expected: str) -> Any:
    if not fits:
        raise Mismatch(expected)
    return value


def _fit_union(value: Any, choices: tuple[Any, ...], target_of: Callable[[str], Any]) -> Any:
    # the exact type first, so that 1 stays an int for `int | float` and `float | int`
    exact = [choice for choice in choices if _plain_type(choice) is type(value)]
    mismatches = []
    for choice in (*exact, *choices):
        try:
            return fit(value, choice, target_of)
        except Mismatch as mismatch:
            mismatches.append(str(mismatch))
    deeper = [text for text in mismatches if ", where " in text]
    if deeper:  # the container is right, one item is not: say only that
        raise Mismatch(deeper[0])
    inner = [text for text in mismatches if ";" in text]
    expected = " or ".join(dict.fromkeys(text.partition(";")[0] for text in mismatches))
    raise Mismatch(expected + (f";{inner[0].partition(';')[2]}" if inner else ""))


def _fit_choice(value: Any, choices: tuple[Any, ...]) -> Any:
    for choice in choices:
        if type(value) is type(choice) and value == choice:
            return value
    words = [choice for choice in choices if isinstance(choice, str)]
    close = similar(value, words, most=1) if isinstance(value, str) else []
    written = [format_value(choice) for choice in choices]
    expected = written[0] if len(written) == 1 else f"{', '.join(written[:-1])} or {written[-1]}"
    raise Mismatch(expected + (f"; write {close[0]!r}" if close else ""))


def _fit_reference(value: Reference, annotation: Any, target_of: Callable[[str], Any]) -> Any:
    origin = typing.get_origin(annotation) or annotation
    expected = type_text(annotation)
    if is_callable_type(annotation):
        return _fit_component(value, annotation, target_of)
    if not inspect.isclass(origin):
        return value
    if not value.called:
        if origin in LITERAL_TYPES or origin in (*SEQUENCES, *MAPPINGS):
            raise Mismatch(expected)
        if getattr(origin, "_is_protocol", False) or "__call__" in vars(origin):
            return value
        raise Mismatch(f"{expected}; write {value}() to pass what it makes")
    made = _plain_type(return_type(target_of(value.selector)))
    if _takes_anything(made):
        return value
    made = typing.get_origin(made) or made
    if (
        inspect.isclass(made)
        and origin in LITERAL_TYPES
        and not issubclass(made, (origin, int) if origin is float else origin)
    ):
        raise Mismatch(expected)
    return value


def _fit_component(value: Reference, annotation: Any, target_of: Callable[[str], Any]) -> Any:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    passed = arguments[0] if arguments and isinstance(arguments[0], list) else None
    if value.called:
        made = return_type(target_of(value.selector))
        if inspect.isclass(made) and not _takes_anything(made) and not _is_called_with(made, passed):
            raise Mismatch(f"a component, not what it makes; write {str(value)[:-2]} without ()")
        return value
    if passed is not None and (takes := _refused(value.selector, target_of(value.selector), len(passed))):
        arguments_text = {0: "no argument", 1: "1 argument"}.get(len(passed), f"{len(passed)} arguments")
        raise Mismatch(f"one that is called with {arguments_text}; {value.selector} takes {takes}")
    if origin is type and arguments and inspect.isclass(arguments[0]):
        target = target_of(value.selector)
        if inspect.isclass(target) and not getattr(arguments[0], "_is_protocol", False):
            _require(issubclass(target, arguments[0]), value, f"a kind of {type_text(arguments[0])}")
    return value


def _is_called_with(made: type, passed: list[Any] | None) -> bool:
    """Whether what a class makes may be called with these positional arguments; None: with any."""
    if "__call__" not in {name for owner in made.__mro__ for name in vars(owner)}:
        return False
    if passed is None:
        return True
    _, positional, most = _taken(getattr(made, "forward", made.__call__))  # a torch module's call is its forward
    required = [name for name, needed in positional[len(passed) + 1 :] if needed]  # the first one is self
    return len(passed) < most and not required


def _refused(name: str, target: Any, passed: int) -> str:
    """What a component takes from Python, where it is not so many positional arguments; "" where it may be."""
    names, positional, most = _taken(target)
    given = {name for name, _ in positional[:passed]}
    entry = CATALOGUE.get(name)
    unfilled = [one for one in (entry.runtime_args if entry else ()) if names.get(one) and one not in given]
    if passed <= most and not unfilled:
        return ""
    return ", ".join(entry.runtime_args if entry else ()) or "none"


def _taken(target: Any) -> tuple[dict[str, bool], list[tuple[str, bool]], float]:
    """(parameter -> whether it is required, the positional ones of them, most positional arguments)."""
    try:
        parameters = inspect.signature(target).parameters.values()
    except (ValueError, TypeError):  # written in C
        return {}, [], math.inf
    named = [one for one in parameters if one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)]
    required = {one.name: one.default is one.empty for one in named}
    positional = [(one.name, required[one.name]) for one in named if one.kind is not one.KEYWORD_ONLY]
    any_number = any(one.kind is one.VAR_POSITIONAL for one in parameters)
    return required, positional, math.inf if any_number else len(positional)


def _items(value: Any, annotation: Any) -> list[Any] | tuple[Any, ...]:
    if isinstance(value, list | tuple):
        return value
    single = not isinstance(value, dict)
    raise Mismatch(type_text(annotation) + (f"; write [{format_value(value)}]" if single and value is not None else ""))


def _fit_tuple(value: Any, arguments: tuple[Any, ...], annotation: Any, target_of: Callable[[str], Any]) -> Any:
    items = _items(value, annotation)
    if not arguments:
        return tuple(items)
    if len(arguments) == 2 and arguments[1] is ...:
        return tuple(_fit_item(item, arguments[0], index, target_of) for index, item in enumerate(items))
    if arguments == ((),):
        arguments = ()
    if len(items) != len(arguments):
        raise Mismatch(f"{type_text(annotation)} ({len(arguments)} values, not {len(items)})")
    return tuple(_fit_item(item, kind, index, target_of) for index, (item, kind) in enumerate(zip(items, arguments)))


def _fit_sequence(value: Any, kind: Any, annotation: Any, target_of: Callable[[str], Any]) -> Any:
    origin = typing.get_origin(annotation) or annotation
    if isinstance(value, dict) and origin in (
        collections.abc.Iterable,
        collections.abc.Collection,
        collections.abc.Container,
    ):
        return value
    items = [_fit_item(item, kind, index, target_of) for index, item in enumerate(_items(value, annotation))]
    return items if origin in (list, collections.abc.MutableSequence) else type(value)(items)


def _fit_mapping(value: Any, arguments: tuple[Any, ...], annotation: Any, target_of: Callable[[str], Any]) -> Any:
    if not isinstance(value, dict):
        raise Mismatch(type_text(annotation))
    key_type, item_type = arguments if len(arguments) == 2 else (Any, Any)
    return {
        _fit_item(key, key_type, f"key {format_value(key)}", target_of): _fit_item(item, item_type, key, target_of)
        for key, item in value.items()
    }


def _fit_item(item: Any, kind: Any, where: Any, target_of: Callable[[str], Any]) -> Any:
    try:
        return fit(item, kind, target_of)
    except Mismatch as mismatch:
        place = where if isinstance(where, str) and where.startswith("key ") else f"[{where!r}]"
        expected, _, remedy = str(mismatch).partition(";")
        text = f"{expected} at {place}, where {format_value(item)} is {type_name(item)}"
        raise Mismatch(text + (f";{remedy}" if remedy else "")) from None


def _fit_plain(value: Any, origin: Any, annotation: Any) -> Any:
    """A value against a class: numbers, text, paths, enums, and anything else."""
    expected = type_text(annotation)
    if not inspect.isclass(origin):
        return value
    if origin in (float, numbers.Real, numbers.Number, complex, typing.SupportsFloat):
        number = isinstance(value, int | float) and not isinstance(value, bool)
        _require(number, value, expected + _unquoted(value))
        try:
            return float(value) if origin is float else value
        except OverflowError:
            raise Mismatch(f"{expected} of at most 1.8e308; use a smaller number") from None
    if origin in (int, numbers.Integral, typing.SupportsInt, typing.SupportsIndex):
        whole = isinstance(value, float) and value.is_integer()
        remedy = f"; write {int(value)}" if whole else _unquoted(value)
        return _require(isinstance(value, int) and not isinstance(value, bool), value, expected + remedy)
    if origin is bool:
        remedy = f"; write {bool(value)}" if value in (0, 1) and isinstance(value, int) else ""
        if isinstance(value, str) and value.lower() in ("true", "false"):
            remedy = f"; write {value.capitalize()}"
        return _require(isinstance(value, bool), value, expected + remedy)
    if origin is os.PathLike or (isinstance(origin, type) and issubclass(origin, os.PathLike)):
        return _require(isinstance(value, str), value, "a path in quotes")
    if issubclass(origin, Enum) and not isinstance(value, origin):
        fits = any(type(value) is type(member.value) and value == member.value for member in origin)
        _require(fits and issubclass(origin, str | int), value, f"one of {[member.value for member in origin]}")
        return value
    if typing.is_typeddict(origin):
        return _require(isinstance(value, dict), value, "dict")
    if getattr(origin, "_is_protocol", False) or isinstance(value, origin):
        return value
    if origin in (str, bytes):
        remedy = f"; write '{value}'" if isinstance(value, int | float) and origin is str else ""
        raise Mismatch(expected + remedy)
    if origin in (types.NoneType, *LITERAL_TYPES):
        raise Mismatch(expected)
    raise Mismatch(f"{expected}, which a component makes, as in @Name()")


def _unquoted(value: Any) -> str:
    """`; write 100` for '100'."""
    if isinstance(value, str):
        try:
            float(value)
        except ValueError:
            return ""
        return f"; write {value.strip()}"
    return ""


def native(value: Any, annotation: Any) -> Any:
    """The object that Python code of this type expects for a gin value: a Path for a string, an enum's member."""
    annotation = _plain_type(annotation)
    if not isinstance(value, str | int) or isinstance(value, bool):
        return value
    choices = typing.get_args(annotation) if is_union(annotation) else (annotation,)
    if any(_plain_type(choice) is type(value) or _takes_anything(_plain_type(choice)) for choice in choices):
        return value
    for choice in choices:
        if inspect.isclass(choice) and issubclass(choice, os.PathLike) and isinstance(value, str):
            return value if inspect.isabstract(choice) else Path(value)
        if inspect.isclass(choice) and issubclass(choice, Enum):
            return choice(value)
    return value
