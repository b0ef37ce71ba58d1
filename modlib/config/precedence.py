"""Which of several gin files count: one that later ones override altogether is an error, and one is the run's own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from modlib.components import Component
from modlib.config.files import GivenFile, Reading, shown
from modlib.config.program import Program
from modlib.config.signatures import signature_of
from modlib.config.statements import Binding, Import, Macro, Origin, Problem, Statement
from modlib.config.values import Operation


def without_effect(reading: Reading, program: Program) -> Iterator[Problem]:
    """Files of which no line takes effect: all is set again by a later file, or read by nothing.

    What a --gin_param or an axis of a sweep overrides counts as effective: that is what they are for.
    """
    counting = _counting(reading.statements, program)
    for file in reading.given:
        own = _orders(reading.statements, file)
        if not own or not counting.isdisjoint(own) or _imports(reading.statements, file):
            continue
        text = f"{shown(file.path)} has no effect: {_why(file, reading, program)}"
        yield Problem(Origin(f"--gin_file #{file.number}"), text)


def _why(file: GivenFile, reading: Reading, program: Program) -> str:
    """Why, and what helps: the first place among the later files where it would have an effect."""
    later = [one for one in reading.given if one.number > file.number]
    if again := [one for one in later if one.path == file.path]:
        return f"it is given again as --gin_file #{again[0].number}; leave one of them out"
    for after in later:
        moved = _moved(reading.statements, file, after)
        end = after.statements.stop
        if not _counting(moved, program).isdisjoint(range(end - len(file.statements), end)):
            return f"what it sets is set again by the files after it; give it after {shown(after.path)}"
    return "nothing in this run reads what it sets; remove it, or give the file that uses it"


def _moved(statements: Sequence[Statement], file: GivenFile, after: GivenFile) -> list[Statement]:
    """The statements as if one file had been given after another."""
    own, end = file.statements, after.statements.stop
    order = [*range(own.start), *range(own.stop, end), *own, *range(end, len(statements))]
    return [
        replace(statements[place], origin=replace(statements[place].origin, order=number))
        for number, place in enumerate(order)
    ]


def _counting(statements: Sequence[Statement], like: Program) -> set[int]:
    """The places of the statements that take effect, with the command line or without it."""
    by_files = [one for one in statements if not one.origin.from_command_line]
    kinds = [statements, by_files] if len(by_files) < len(statements) else [statements]
    return set().union(*(_effective(Program(kind, like.mentioned, like.command)) for kind in kinds))


def _orders(statements: Sequence[Statement], file: GivenFile) -> set[int]:
    """The places of what a file binds."""
    return {place for place in file.statements if isinstance(statements[place], Binding | Macro)}


def _imports(statements: Sequence[Statement], file: GivenFile) -> bool:
    """Whether it brings components, which later files may use."""
    return any(isinstance(statements[place], Import) for place in file.statements)


def _effective(program: Program) -> set[int]:
    """The places of the statements that the run reads a value from."""
    found: set[int] = set()
    for instance in program.reached(every=False):
        for binding in program.effective(instance).values():
            same = [one for one in program.bindings[binding.selector] if one.parameter == binding.parameter]
            found |= _chain(binding, [one for one in same if one.scope == binding.scope])
            for name in program.macros_in(binding.value):
                found |= _chain(program.macros[name][-1], program.macros[name])
    return found


def _chain(last: Binding | Macro, same: Sequence[Binding | Macro]) -> set[int]:
    """A statement, and those that it adds to with `+=`."""
    found = {last.origin.order}
    for statement in reversed(same[: same.index(last) + 1]):
        found.add(statement.origin.order)
        if not (isinstance(statement.value, Operation) and statement.value.symbol == "+="):
            break
    return found


def run_file(reading: Reading, program: Program, components: Mapping[str, Component]) -> Path | None:
    """The file that the run is named after: the last that sets all that a run must have, else the first."""
    for file in reversed(reading.given):
        if any(_is_whole(file, reading.statements, name, components) for name in _runs(program)):
            return file.path
    return reading.given[0].path if reading.given else None


def _runs(program: Program) -> Iterable[str]:
    return [root.name for root in program.roots if program.known[root.name].type == "run"]


def _is_whole(file: GivenFile, statements: Sequence[Statement], run: str, components: Mapping[str, Component]) -> bool:
    bound = {
        statement.parameter
        for statement in (statements[place] for place in file.statements)
        if isinstance(statement, Binding) and statement.selector.rpartition(".")[2] == run and not statement.scope
    }
    required = {one.name for one in signature_of(components[run]).parameters.values() if one.required}
    return bool(required) and required <= bound
