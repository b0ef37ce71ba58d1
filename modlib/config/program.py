"""A run's bindings and macros as one program: what refers to what, and which binding takes effect where."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import gin

from modlib.components import Component, known_components
from modlib.config.renames import component_rename, parameter_rename
from modlib.config.statements import Binding, Macro, Origin, Problem, Statement
from modlib.config.suggestions import did_you_mean, similar
from modlib.config.values import (
    Constant,
    Items,
    MacroUse,
    Node,
    Operation,
    Pairs,
    Reference,
    Required,
    UnknownMacro,
    ValueProblem,
    evaluate,
    is_literal,
    walk,
)

REQUIRED = "gin.REQUIRED"


@dataclass(frozen=True)
class Instance:
    """A component as one place of the run uses it: its scope and name."""

    scope: tuple[str, ...]
    name: str

    def __str__(self) -> str:
        return "/".join((*self.scope, self.name))


class Program:
    """Statements with their selectors resolved to components.

    Args:
        statements: In the order in which they apply.
        mentioned: Words of lines that could not be read; what they name is not called unused.
        command: What is configured, where it is not a run of the catalogue.
    """

    def __init__(
        self, statements: Sequence[Statement], mentioned: Iterable[str] = (), command: Component | None = None
    ) -> None:
        self.command = command
        self.known: dict[str, Component] = known_components() | ({command.name: command} if command else {})
        self.problems: list[Problem] = []
        self.renamed: dict[str, None] = {}
        """Lines for the user about old names, each once."""
        self.mentioned = set(mentioned)
        self.macros: dict[str, list[Macro]] = {}
        self.bindings: dict[str, list[Binding]] = {}
        self.start = Origin(statements[0].origin.source, 1) if statements else Origin("config", 1)
        self._macro_values: dict[str, Any] = {}
        self._open_macros: list[str] = []
        bound = [statement for statement in statements if isinstance(statement, Binding | Macro)]
        for statement in bound:
            if isinstance(statement, Macro):
                self.macros.setdefault(statement.name, []).append(statement)
        for statement in bound:
            self._take(statement)

    def _take(self, statement: Binding | Macro) -> None:
        value = self._resolve(statement.value, statement)
        if isinstance(statement, Macro):
            definitions = self.macros[statement.name]
            place = definitions.index(statement)
            definitions[place] = replace(statement, value=self._added(value, definitions[:place], statement))
            return
        name = self._component(statement.selector, statement, f"no component {statement.selector}")
        if name is None:
            self.mentioned |= {f"{close}.{statement.parameter}" for close in similar(statement.selector, self.known)}
            return
        if found := parameter_rename(name, statement.parameter):
            parameter = found.new.rpartition(".")[2]
            self._note_rename(statement, f"{name}.{statement.parameter}", f"{name}.{parameter}", found.since)
            statement = replace(statement, parameter=parameter)
        bindings = self.bindings.setdefault(name, [])
        same = [one for one in bindings if (one.scope, one.parameter) == (statement.scope, statement.parameter)]
        bindings.append(replace(statement, selector=name, value=self._added(value, same, statement)))

    def _added(self, value: Node, before: Sequence[Binding | Macro], statement: Binding | Macro) -> Node:
        """What `+=` adds to, together with what it adds; any other value as it is."""
        if not (isinstance(value, Operation) and value.symbol == "+="):
            return value
        if before:
            return Operation("+=", (before[-1].value, *value.operands))
        name = statement.name if isinstance(statement, Macro) else f"{statement.selector}.{statement.parameter}"
        if name not in self.mentioned:
            text = f"{name} += adds to what is set before, and nothing sets it before; put it after that, or use ="
            self.problems.append(Problem(statement.origin, text))
        return value.operands[0]

    def _resolve(self, node: Node, statement: Binding | Macro) -> Node:
        """The node with the components' own names in its references; unknown names are reported."""
        match node:
            case Reference(selector=selector):
                name = self._component(selector, statement, f"no component {selector} for {node}")
                if name is None:
                    self.mentioned |= set(similar(selector, self.known))
                return replace(node, selector=name or selector)
            case MacroUse(name=name):
                if (
                    name not in self.macros
                    and name != REQUIRED
                    and not is_constant(name)
                    and name not in self.mentioned
                ):
                    names = [*self.macros, *constant_names()]
                    text = f"no macro {name} for %{name}.{did_you_mean(name, names)}"
                    self.problems.append(Problem(statement.origin, f"{text} Define it: {name} = value"))
                    self.mentioned |= set(similar(name, names))
            case Items(items=items):
                return replace(node, items=tuple(self._resolve(item, statement) for item in items))
            case Pairs(items=items):
                resolved = ((self._resolve(key, statement), self._resolve(item, statement)) for key, item in items)
                return Pairs(tuple(resolved))
            case Operation(operands=operands):
                return replace(node, operands=tuple(self._resolve(operand, statement) for operand in operands))
        return node

    def _component(self, selector: str, statement: Binding | Macro, text: str) -> str | None:
        """The component that a selector names, alone or after its type."""
        type_name, _, name = selector.rpartition(".")
        if name not in self.known and (rename := component_rename(name)):
            self._note_rename(statement, name, rename.new, rename.since)
            name = rename.new
        found = self.known.get(name)
        if found and (not type_name or type_name == found.type):
            return name
        if found:
            hint = f" Did you mean {found.selector}?"
        elif close := [entry.name for entry in self.known.values() if selector in (entry.variant, entry.selector)]:
            hint = f" Did you mean {' or '.join(close)}?"
        else:
            hint = did_you_mean(name, self.known)
        if not hint and gin.config._REGISTRY.matching_selectors(selector):
            hint = " It is registered with gin alone; register it with @component of modlib.components"
        remedy = "" if hint else " `modlib list` shows all; a component of your own needs its import in the gin file"
        self.problems.append(Problem(statement.origin, f"{text}.{hint}{remedy}"))
        return None

    def _note_rename(self, statement: Binding | Macro, old: str, new: str, since: str) -> None:
        self.renamed[f"{statement.origin}: {old} is called {new} since {since}; write {new}"] = None

    # values

    def value_of_macro(self, name: str) -> Any:
        """The value that a macro has in the end.

        Raises:
            ValueProblem: It cannot be computed, or is defined by itself.
        """
        if name == REQUIRED:
            return Required()
        if name not in self.macros:
            return constant_value(name)
        if name in self._open_macros:
            chain = " -> ".join((*self._open_macros[self._open_macros.index(name) :], name))
            raise ValueProblem(f"the macros define each other: {chain}; give one of them a value")
        if name not in self._macro_values:
            self._open_macros.append(name)
            try:
                self._macro_values[name] = evaluate(self.macros[name][-1].value, self.value_of_macro)
            finally:
                self._open_macros.pop()
        return self._macro_values[name]

    def value_of(self, node: Node) -> Any:
        """Compute a node; raises ValueProblem."""
        return evaluate(node, self.value_of_macro)

    def macros_in(self, node: Node, *, every: bool = False) -> list[str]:
        """The macros that a value depends on, outermost first; with `every`, through overridden definitions too."""
        found: dict[str, None] = {}
        waiting = [node]
        while waiting:
            for part in walk(waiting.pop(0)):
                if isinstance(part, MacroUse) and part.name not in found and part.name in self.macros:
                    found[part.name] = None
                    definitions = self.macros[part.name]
                    waiting += [macro.value for macro in (definitions if every else definitions[-1:])]
        return list(found)

    def references(self, node: Node, *, every: bool = False) -> Iterator[Reference]:
        """The references in a value, also those that its macros hold."""
        nodes = [node]
        for name in self.macros_in(node, every=every):
            nodes += [macro.value for macro in (self.macros[name] if every else self.macros[name][-1:])]
        for each in nodes:
            yield from (part for part in walk(each) if isinstance(part, Reference) and part.selector in self.known)

    # reachability

    def candidates(self, instance: Instance) -> list[Binding]:
        """The bindings that reach an instance, the one that takes effect last for each parameter."""
        own = [binding for binding in self.bindings.get(instance.name, []) if _covers(binding.scope, instance.scope)]
        return sorted(own, key=lambda binding: (len(binding.scope), binding.origin.order))

    def effective(self, instance: Instance) -> dict[str, Binding]:
        """The binding of each bound parameter of an instance."""
        return {binding.parameter: binding for binding in self.candidates(instance)}

    def child(self, reference: Reference, parent: Instance) -> Instance:
        """What a reference means inside an instance: without a scope of its own it inherits the instance's.

        A scope in which nothing below is bound makes no difference and is left out.
        """
        if reference.scope:
            return Instance(reference.scope, reference.selector)
        below = (binding for name in self._below(reference.selector) for binding in self.bindings.get(name, []))
        matters = any(binding.scope and _covers(binding.scope, parent.scope) for binding in below)
        return Instance(parent.scope if matters else (), reference.selector)

    def _below(self, name: str) -> set[str]:
        """A component and all that it reaches by references without scopes."""
        found = {name}
        waiting = [name]
        while waiting:
            for binding in self.bindings.get(waiting.pop(), []):
                for reference in self.references(binding.value, every=True):
                    if not reference.scope and reference.selector not in found:
                        found.add(reference.selector)
                        waiting.append(reference.selector)
        return found

    @cached_property
    def roots(self) -> list[Instance]:
        """Where a run begins: its run component, and the components that launch it; or the command alone."""
        if self.command is not None:
            return [Instance((), self.command.name)]
        runs = [name for name, entry in self.known.items() if entry.type == "run"]
        bound = [name for name in runs if name in self.bindings]
        launches = [name for name, entry in self.known.items() if entry.type == "launch"]
        return [Instance((), name) for name in (*(bound or runs[:1]), *launches)]

    def reached(self, *, every: bool) -> list[Instance]:
        """The instances of the run, parents first; with `every`, also what overridden bindings refer to."""
        roots = list(self.roots)
        if every:
            roots += [Instance((), name) for name in sorted(self.mentioned) if name in self.known]
        found = dict.fromkeys(roots)
        waiting = list(roots)
        while waiting:
            parent = waiting.pop(0)
            bindings = self.candidates(parent) if every else list(self.effective(parent).values())
            for binding in sorted(bindings, key=lambda binding: binding.origin.order):
                for reference in self.references(binding.value, every=every):
                    child = self.child(reference, parent)
                    if child not in found:
                        found[child] = None
                        waiting.append(child)
        return list(found)


def _covers(outer: tuple[str, ...], scope: tuple[str, ...]) -> bool:
    return scope[: len(outer)] == outer


def constant_names() -> list[str]:
    """The names of gin's constants."""
    return [name for name, _ in gin.config._CONSTANTS.items()]


def is_constant(name: str) -> bool:
    """Whether a module registered a gin constant of this name."""
    return bool(gin.config._CONSTANTS.matching_selectors(name))


def constant_value(name: str) -> Any:
    """A constant's value; an object without a literal stays a name.

    Raises:
        ValueProblem: There is none, or the name fits several.
    """
    names = gin.config._CONSTANTS.matching_selectors(name)
    if not names:
        raise UnknownMacro(name)
    if len(names) > 1:
        raise ValueProblem(f"%{name} is ambiguous: {', '.join(names)}; write one of them")
    value = gin.config._CONSTANTS[names[0]]
    return value if is_literal(value) else Constant(name)
