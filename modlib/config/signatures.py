"""The schema of a component: its constructor's parameters, their types and defaults."""

from __future__ import annotations

import dataclasses
import inspect
import sys
import typing
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import gin

from modlib.components import Component
from modlib.config.values import format_value, is_literal, object_name

NOTHING = inspect.Parameter.empty


@dataclass(frozen=True)
class Parameter:
    """One parameter that a gin file may bind.

    Args:
        name: Its name.
        annotation: Its type; `inspect.Parameter.empty` when it has none or it cannot be resolved.
        default: Its default; `inspect.Parameter.empty` when it has to be given.
        written: The annotation as the source has it.
        non_finite: Whether its numbers may be inf or NaN.
    """

    name: str
    annotation: Any
    default: Any
    written: str
    non_finite: bool = False

    @property
    def required(self) -> bool:
        """Whether a value has to be bound."""
        return self.default is NOTHING or self.default is gin.REQUIRED

    @property
    def type_text(self) -> str:
        """The type in short words, as an error text and `modlib list` show it."""
        return type_text(self.annotation) if self.annotation is not NOTHING else self.written

    def __str__(self) -> str:
        parts = [self.type_text] if self.type_text else []
        parts.append("required" if self.required else f"default {default_text(self.default)}")
        return ", ".join(parts)


@dataclass(frozen=True)
class Signature:
    """What a component accepts.

    Args:
        parameters: The bindable parameters, by name, in order.
        runtime_args: The parameters that Python passes.
        swallows: Name of the `**kwargs`, or None.
        problem: Why the signature cannot be read, or None.
    """

    parameters: dict[str, Parameter]
    runtime_args: tuple[str, ...]
    swallows: str | None = None
    problem: str | None = None


@cache
def signature_of(component: Component) -> Signature:
    """Read the signature of a loaded component."""
    target = component.target
    assert target is not None, component
    try:
        declared = inspect.signature(target).parameters
    except (ValueError, TypeError) as error:
        return Signature({}, component.runtime_args, None, str(error))
    hints = _hints(target)
    factories = _factories(target)
    parameters: dict[str, Parameter] = {}
    positional: list[str] = []
    swallows = None
    for name, parameter in declared.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            swallows = name
        elif parameter.kind is parameter.POSITIONAL_ONLY:
            positional.append(name)  # gin passes keywords only
        elif parameter.kind is not parameter.VAR_POSITIONAL and name not in component.runtime_args:
            written = parameter.annotation if isinstance(parameter.annotation, str) else ""
            default = factories.get(name, parameter.default)
            non_finite = name in component.non_finite
            parameters[name] = Parameter(name, hints.get(name, NOTHING), default, written, non_finite)
    return Signature(parameters, (*component.runtime_args, *positional), swallows)


def _factories(target: Any) -> dict[str, Any]:
    """Defaults that a dataclass makes anew for each instance."""
    if not (inspect.isclass(target) and dataclasses.is_dataclass(target)):
        return {}
    return {
        field.name: field.default_factory()
        for field in dataclasses.fields(target)
        if field.default_factory is not dataclasses.MISSING
    }


def _constructor(target: Any) -> Any:
    if not inspect.isclass(target):
        return inspect.unwrap(target)
    for owner in target.__mro__:
        for name in ("__init__", "__new__"):
            if name in owner.__dict__ and owner is not object:
                return owner.__dict__[name]
    return object.__init__


def _hints(target: Any) -> dict[str, Any]:
    """Types by parameter; a type that cannot be resolved (imported for type checkers only) is left out."""
    sources = [_constructor(target), target] if dataclasses.is_dataclass(target) else [_constructor(target)]
    found: dict[str, Any] = {}
    for source in sources:
        try:
            found |= typing.get_type_hints(source, include_extras=True)
        except Exception:  # any expression may stand in an annotation
            found |= _hints_one_by_one(source)
    return found


def _hints_one_by_one(source: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for owner in reversed(source.__mro__) if inspect.isclass(source) else [source]:
        scope = getattr(owner, "__globals__", None) or vars(sys.modules.get(owner.__module__, typing))
        for name, annotation in getattr(owner, "__annotations__", {}).items():
            try:
                found[name] = eval(annotation, dict(scope)) if isinstance(annotation, str) else annotation
            except Exception:  # see above
                continue
    return found


def return_type(target: Any) -> Any:
    """What calling a component gives: the class itself, a function's return annotation, or nothing known."""
    if inspect.isclass(target):
        return target
    return _hints(target).get("return", NOTHING)


def type_text(annotation: Any) -> str:
    """A type in short words: `float | None`, `'a' or 'b'`, `GPT2`."""
    if annotation is None or annotation is type(None):
        return "None"
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return type_text(arguments[0])
    if origin is typing.Literal:
        return " or ".join(format_value(argument) for argument in arguments)
    if is_union(annotation):
        return " | ".join(dict.fromkeys(map(type_text, arguments)))
    if is_callable_type(annotation):
        return "a component"
    if origin is not None and arguments:
        inside = ", ".join("..." if argument is ... else type_text(argument) for argument in arguments)
        return f"{type_text(origin)}[{inside}]"
    return getattr(annotation, "__name__", None) or str(annotation).replace("typing.", "")


def is_union(annotation: Any) -> bool:
    """Whether a type is `Union[...]`, `Optional[...]` or `A | B`."""
    import types

    return typing.get_origin(annotation) in (typing.Union, types.UnionType)


def is_callable_type(annotation: Any) -> bool:
    """Whether a type is satisfied by a class or function."""
    import collections.abc

    origin = typing.get_origin(annotation) or annotation
    return origin in (Callable, collections.abc.Callable, type)


def default_text(default: Any) -> str:
    """A default as a gin file would write it, or the name of the object."""
    return format_value(default) if is_literal(default) else object_name(default)
