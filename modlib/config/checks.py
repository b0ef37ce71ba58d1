"""Checks for mistakes that gin silently accepts; every function gives all problems of its kind."""

from __future__ import annotations

import contextlib
import importlib.util
import math
import typing
from collections.abc import Iterable, Iterator
from typing import Any

from modlib.components import Component
from modlib.config.matching import Mismatch, fit
from modlib.config.program import REQUIRED, Instance, Program
from modlib.config.signatures import Parameter, Signature, default_text, type_text
from modlib.config.statements import Binding, Macro, Origin, Problem
from modlib.config.suggestions import did_you_mean, similar
from modlib.config.values import (
    Items,
    Literal,
    MacroUse,
    Node,
    Operation,
    Pairs,
    Required,
    ValueProblem,
    format_value,
    is_literal,
    plain,
    type_name,
    walk,
)
from modlib.runtime.secrets import is_secret_name, name_within, why_secret


def secrets(program: Program) -> Iterator[Problem]:
    """Strings that look like a key, a token or a password."""
    statements: list[Binding | Macro] = [item for group in program.bindings.values() for item in group]
    statements += [item for group in program.macros.values() for item in group]
    for statement in statements:
        name = statement.name if isinstance(statement, Macro) else statement.parameter
        if why := _why_secret(program, name, statement.value):
            yield Problem(
                statement.origin,
                f"{name} holds {why}, and a config is written to the run folder; remove it and set the environment "
                "variable that the service reads (WANDB_API_KEY, HF_TOKEN, ...)",
            )


def _why_secret(program: Program, name: str, node: Node) -> str | None:
    """Why what was written here is a secret. Macros are judged where they are defined, sums by what comes out."""
    match node:
        case Literal(value=value):
            return why_secret(name, value)
        case Items(items=items):
            return next(filter(None, (_why_secret(program, name, item) for item in items)), None)
        case Pairs(items=items):
            keys = [getattr(key, "value", None) for key, _ in items]
            found = [_why_secret(program, name_within(name, key), item) for key, (_, item) in zip(keys, items)]
            return next(filter(None, [*found, *(why_secret("", key) for key in keys)]), None)
        case Operation(operands=operands):
            with contextlib.suppress(ValueProblem):
                return why_secret(name, plain(program.value_of(node)))
            return next(filter(None, (_why_secret(program, name, operand) for operand in operands)), None)
    return None


def not_installed(component: Component, place: Origin) -> Iterator[Problem]:
    """The package of an optional extra that a component names as its class attribute `requires`."""
    package = getattr(component.target, "requires", None)
    if isinstance(package, str) and importlib.util.find_spec(package) is None:
        yield Problem(place, f"{component.name} needs the package {package}; pip install 'modlib[{package}]'")


def unused_bindings(program: Program, effective: list[Instance], possible: list[Instance]) -> Iterator[Problem]:
    """Bindings that no part of the run would read: unreachable component, unknown scope, or hidden by another."""
    entered = {instance.scope[:end] for instance in possible for end in range(len(instance.scope) + 1)}
    for name, bindings in program.bindings.items():
        instances = [instance for instance in possible if instance.name == name]
        for binding in bindings:
            if name in program.mentioned or any(scope in program.mentioned for scope in binding.scope):
                continue
            mine = [one for one in instances if one.scope[: len(binding.scope)] == binding.scope]
            if not mine:
                yield Problem(binding.origin, _unread(binding, instances, entered))
            elif hiding := _hidden(program, binding, mine):
                yield Problem(
                    binding.origin,
                    f"{key(binding)} has no effect: {key(hiding)} is set at {hiding.origin}, and a scope wins; "
                    f"set {key(hiding)} instead",
                )
            elif binding.origin.from_command_line and not any(one in effective for one in mine):
                yield Problem(
                    binding.origin, f"{key(binding)} has no effect: nothing in this run uses {name}; {_use(name)}"
                )


def _unread(binding: Binding, instances: list[Instance], entered: set[tuple[str, ...]]) -> str:
    name = binding.selector
    scopes = sorted({"/".join(one.scope) for one in instances if one.scope})
    if binding.scope and binding.scope not in entered:
        everywhere = sorted({"/".join(scope) for scope in entered if scope})
        scope = "/".join(binding.scope)
        known = f"Known scopes: {', '.join(everywhere)}" if everywhere else "This run has no scopes"
        hint = did_you_mean(scope, everywhere)
        return f"scope {scope!r} is never entered, so {key(binding)} has no effect.{hint} {known}"
    if instances and scopes:
        return (
            f"{key(binding)} has no effect: {name} is not used in the scope {'/'.join(binding.scope)!r}, "
            f"only in {', '.join(scopes)}; correct the scope"
        )
    if instances:
        return f"{key(binding)} has no effect: {name} is used without a scope; write {name}.{binding.parameter}"
    return f"{key(binding)} has no effect: nothing in this run uses {name}; {_use(name)}"


def _use(name: str) -> str:
    return f"refer to it with @{name}, or remove the binding"


def _hidden(program: Program, binding: Binding, instances: Iterable[Instance]) -> Binding | None:
    """The binding that hides this one in every instance although it comes earlier; None when this one counts."""
    hiding = None
    for instance in instances:
        rivals = [other for other in program.candidates(instance) if other.parameter == binding.parameter]
        hiding = rivals[-1]
        if hiding is binding or hiding.origin.order > binding.origin.order:
            return None
    return hiding


def unused_macros(program: Program, effective: list[Instance]) -> Iterator[Problem]:
    """Macros that nothing uses; on the command line also those that nothing in this run uses."""
    statements: list[Binding | Macro] = [item for group in program.bindings.values() for item in group]
    statements += [item for group in program.macros.values() for item in group]
    written = {part.name for item in statements for part in walk(item.value) if isinstance(part, MacroUse)}
    counting = {
        name
        for instance in effective
        for binding in program.effective(instance).values()
        for name in program.macros_in(binding.value)
    }
    unknown = {name for name in written if name not in program.macros}
    for name, definitions in program.macros.items():
        if name in program.mentioned:
            continue
        if name not in written:
            close = similar(name, unknown or (set(program.macros) - {name}), most=1)
            place = f" ({program.macros[close[0]][-1].origin})" if close and close[0] in program.macros else ""
            hint = f" Did you mean {close[0]}{place}?" if close else ""
            yield Problem(definitions[-1].origin, f"the macro {name} is defined but never used.{hint or ' Remove it'}")
        elif name not in counting and definitions[-1].origin.from_command_line:
            yield Problem(
                definitions[-1].origin, f"{name} has no effect: nothing that this run uses reads %{name}; remove it"
            )


def names(program: Program, instance: Instance, signature: Signature, component: Component) -> Iterator[Problem]:
    """Bindings to parameters that are not there, or that Python passes."""
    for binding in program.candidates(instance):
        name = binding.parameter
        if name in signature.parameters or signature.problem:
            continue
        if name in signature.runtime_args:
            yield Problem(
                binding.origin,
                f"{component.name}.{name} is passed at run time and cannot be set in a gin file; remove the binding",
            )
            continue
        close = similar(name, signature.parameters, most=2)
        hint = " or ".join(f"'{other}' ({signature.parameters[other]})" for other in close)
        if hint:
            remedy = f" Did you mean {hint}?"
        elif signature.swallows:
            remedy = f" **{signature.swallows} would swallow it; declare it in the signature ({component.place})"
        else:
            remedy = f" It has: {', '.join(signature.parameters) or 'none'}"
        yield Problem(binding.origin, f"{component.name} has no parameter '{name}'.{remedy}")


def missing(program: Program, instance: Instance, signature: Signature, component: Component) -> Iterator[Problem]:
    """Parameters without a value, all those of one component in one text."""
    bound = program.effective(instance)
    absent = [one for one in signature.parameters.values() if one.required and one.name not in bound]
    unknown = [name for name in bound if name not in signature.parameters]
    meant = {close for name in unknown for close in similar(name, [one.name for one in absent], most=2)}
    absent = [
        one for one in absent if one.name not in meant and f"{component.name}.{one.name}" not in program.mentioned
    ]
    if not absent:
        return
    origin = first_use(program, instance)
    listed = ", ".join(f"{one.name}{f' ({one.type_text})' if one.type_text else ''}" for one in absent)
    remedy = f"write {instance}.{absent[0].name} = value"
    if not component.module.startswith(("modlib.", "torch.")):
        remedy += f"; an argument that Python passes belongs in runtime_args of @component ({component.place})"
    if program.command is None and instance in program.roots and instance.name not in program.bindings:
        text = f"no line binds {instance}, the run itself, which needs {listed}; "
        text += "include 'training/causal_lm.gin', or bind these"
        yield Problem(origin, text)
        return
    yield Problem(origin, f"{instance} needs {listed}, which {'is' if len(absent) == 1 else 'are'} not set; {remedy}")


def first_use(program: Program, instance: Instance) -> Origin:
    """Where a component comes into the run: the reference to it that counts, else its first binding."""
    uses = [
        (reference.scope == instance.scope, binding.origin)
        for group in program.bindings.values()
        for binding in group
        for reference in program.references(binding.value)
        if reference.selector == instance.name
    ]
    if uses:
        return max(uses, key=lambda use: (use[0], use[1].order))[1]
    own = [binding.origin for binding in program.bindings.get(instance.name, [])]
    return min(own, key=lambda origin: origin.order, default=program.start)


def fitted(
    program: Program,
    binding: Binding,
    parameter: Parameter,
    value: Any,
    targets: dict[str, Any],
    problems: list[Problem],
) -> Any:
    """The value in the form of the parameter's type; a problem is added when it does not fit."""
    if _holds_required(value):
        problems.append(_required(program, binding, parameter))
        return value
    if unfit := _not_finite(program, binding, parameter, value):
        problems.append(unfit)
        return value
    try:
        return fit(value, parameter.annotation, targets.__getitem__)
    except Mismatch as mismatch:
        if not parameter.required and type(value) is type(parameter.default) and value == parameter.default:
            return value  # whatever the annotation says, the default is accepted
        expected, _, remedy = str(mismatch).partition(";")
        written = "***" if is_secret_name(binding.parameter) else format_value(value)
        source = _source(program, binding)
        at_item = " at [" in expected or " at key " in expected
        is_what = "does not fit" if at_item else f"is {type_name(value)}"
        problems.append(
            Problem(
                binding.origin,
                f"{key(binding)} = {written}{source} {is_what}, expected {expected}{f';{remedy}' if remedy else ''}"
                f"{_overridden(program, binding)}",
            )
        )
        return value


def _not_finite(program: Program, binding: Binding, parameter: Parameter, value: Any) -> Problem | None:
    """Inf or NaN in a parameter whose component does not say that they have a meaning."""
    written = format_value(value)
    if parameter.non_finite or all(map(math.isfinite, _floats(value))) or written == default_text(parameter.default):
        return None
    remedy = "write a number or None" if type(None) in typing.get_args(parameter.annotation) else "write a number"
    component = program.known[binding.selector]
    if not component.module.startswith(("modlib.", "torch.")):
        remedy += f", or name it in non_finite of @component ({component.place})"
    text = f"{key(binding)} ({written}) must be finite{_source(program, binding)}; {remedy}"
    return Problem(binding.origin, text + _overridden(program, binding))


def _source(program: Program, binding: Binding) -> str:
    """The macro that a value comes from, and where it is set."""
    return "".join(
        f" (from %{name}, {program.macros[name][-1].origin})" for name in program.macros_in(binding.value)[:1]
    )


def _floats(value: Any) -> Iterator[float]:
    if isinstance(value, dict):
        value = [*value, *value.values()]
    if isinstance(value, list | tuple):
        for item in value:
            yield from _floats(item)
    elif isinstance(value, float):
        yield value


def _holds_required(value: Any) -> bool:
    if isinstance(value, dict):
        return any(map(_holds_required, [*value, *value.values()]))
    if isinstance(value, list | tuple):
        return any(map(_holds_required, value))
    return isinstance(value, Required)


def default_value(parameter: Parameter) -> Any:
    """The default in the form of its type, so that `1` and an explicit `1.0` for a float mean the same."""
    try:
        return (
            fit(parameter.default, parameter.annotation, lambda _: None)
            if is_literal(parameter.default)
            else parameter.default
        )
    except Mismatch:
        return parameter.default


def _overridden(program: Program, binding: Binding) -> str:
    earlier = [
        other
        for other in program.bindings[binding.selector]
        if (other.scope, other.parameter) == (binding.scope, binding.parameter)
        and other.origin.order < binding.origin.order
    ]
    if not earlier or not isinstance(earlier[-1].value, Literal):
        return ""
    return f" (overrides {earlier[-1].origin} = {format_value(earlier[-1].value.value)})"


def _required(program: Program, binding: Binding, parameter: Parameter) -> Problem:
    """%gin.REQUIRED is left; named by the macro that holds it."""
    holders = [
        name for name in program.macros_in(binding.value) if MacroUse(REQUIRED) in walk(program.macros[name][-1].value)
    ]
    name = holders[0] if holders else key(binding)
    origin = program.macros[holders[0]][-1].origin if holders else binding.origin
    example = f"\"{name}='...'\"" if "str" in type_text(parameter.annotation) else f'"{name}=..."'
    return Problem(origin, f"{name} is required and not set; set it in a gin file, or with --gin_param {example}")


def key(binding: Binding) -> str:
    """The dotted name of what a binding binds."""
    return f"{'/'.join((*binding.scope, binding.selector))}.{binding.parameter}"
