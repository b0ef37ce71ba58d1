"""Reads the text of a gin file into statements, each with its place; goes on after an error to find them all."""

from __future__ import annotations

import tokenize

from modlib.config.statements import Binding, Import, Include, Macro, Problem, Statement
from modlib.config.tokens import SKIPPED, Wrong
from modlib.config.value_syntax import ValueReader
from modlib.config.values import Node, Operation


def parse(text: str, source: str, *, is_file: bool = True) -> tuple[list[Statement], list[Problem]]:
    """Read statements from the text of a file or of one --gin_param.

    Args:
        text: What was written.
        source: Name of the file, or `--gin_param #1`.
        is_file: Whether origins have line numbers.
    """
    reader = _Reader(text, source, is_file)
    reader.read()
    return reader.statements, reader.problems


class _Reader(ValueReader):
    """Statements; after an error it goes on with the next one."""

    def read(self) -> None:
        while self._skip(*SKIPPED, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT).type != tokenize.ENDMARKER:
            before = self.position
            self.key = ""
            try:
                self._statement()
            except Wrong as wrong:
                self.problems.append(Problem(self.origin(wrong.line), str(wrong), self.key))
                self._recover(before)

    def _recover(self, before: int) -> None:
        """Go to the end of the logical line; of the whole block when the block's head is wrong."""
        self.position = max(self.position, before)
        while self.current.type not in (tokenize.NEWLINE, tokenize.ENDMARKER):
            self.position += 1
        if self._skip(*SKIPPED, tokenize.NEWLINE).type == tokenize.INDENT:
            depth = 0
            while self.current.type != tokenize.ENDMARKER:
                depth += (self.current.type == tokenize.INDENT) - (self.current.type == tokenize.DEDENT)
                self.position += 1
                if depth == 0:
                    return

    def _statement(self) -> None:
        line = self.current.start[0]
        if self.current.string == "@":
            raise self._wrong("a line starts with a name; write NAME = value, or Component.parameter = value")
        scope, name = self._scoped_name("NAME = value, or Component.parameter = value")
        word = "/".join((*scope, name))
        if word in ("import", "from") and self.current.type == tokenize.NAME:
            self._import(word, line)
        elif word == "include" and self.current.string not in ("=", ":"):
            self._include(line)
        elif self.current.string in ("=", "+="):
            self.key = word
            self._bind(scope, name, self._assigned(), line)
        elif self.current.string == ":":
            self._block(scope, name, line)
            return
        else:
            raise self._wrong(f"expected '=' after {word}; write {word} = value")
        self._end_of_line()

    def _assigned(self) -> Node:
        """The value after `=`; after `+=`, what it adds to the value that counted so far."""
        adds = self._next().string == "+="
        return Operation("+=", (self._value(),)) if adds else self._value()

    def _bind(self, scope: tuple[str, ...], name: str, value: Node, line: int) -> None:
        selector, _, parameter = name.rpartition(".")
        if selector:
            self.statements.append(Binding(scope, selector, parameter, value, self.origin(line)))
        else:
            self.statements.append(Macro("/".join((*scope, name)), value, self.origin(line)))

    def _block(self, scope: tuple[str, ...], selector: str, line: int) -> None:
        self.position += 1
        self._skip(tokenize.COMMENT)
        if self.current.type != tokenize.NEWLINE:
            raise self._wrong(
                f"after '{selector}:' begin a new line, and indent it; or write {selector}.parameter = value"
            )
        if self._skip(*SKIPPED, tokenize.NEWLINE).type != tokenize.INDENT:
            self.problems.append(
                Problem(self.origin(line), f"the block {selector} is empty; indent its lines, or remove it")
            )
            return
        self.position += 1
        while self._skip(*SKIPPED, tokenize.NEWLINE).type not in (tokenize.DEDENT, tokenize.ENDMARKER):
            before = self.position
            try:
                self._block_line(scope, selector)
            except Wrong as wrong:
                self.problems.append(Problem(self.origin(wrong.line), str(wrong), self.key))
                self._recover(before)
        if self.current.type == tokenize.DEDENT:
            self.position += 1

    def _block_line(self, scope: tuple[str, ...], selector: str) -> None:
        line = self.current.start[0]
        expected = f"expected 'parameter = value' in the block {selector}"
        if self.current.type != tokenize.NAME:
            raise self._wrong(expected)
        parameter = self._next().string
        if self.current.string == ".":
            raise self._wrong(f"{expected}; {selector} is already named by the block, so leave it out here")
        if self.current.string not in ("=", "+="):
            raise self._wrong(f"{expected}; write {parameter} = value")
        self.key = f"{'/'.join((*scope, selector))}.{parameter}"
        self.statements.append(Binding(scope, selector, parameter, self._assigned(), self.origin(line)))
        self._end_of_line()

    def _import(self, word: str, line: int) -> None:
        _, module = self._scoped_name("the name of a module", scoped=False)
        if word == "from":
            if self.current.string != "import":
                raise self._wrong(f"expected 'import' after 'from {module}'; write import {module}")
            self.position += 1
            _, name = self._scoped_name("a name", scoped=False)
            if module == "__gin__":
                raise Wrong(f"gin's {name} is not supported; import the module, and use @component in it", line)
            module = f"{module}.{name}"
        if self.current.string == "as":
            raise self._wrong("'as' has no use here; components are named by their own names")
        self.statements.append(Import(module, self.origin(line)))

    def _include(self, line: int) -> None:
        if not self.is_file:
            raise self._wrong("a parameter cannot include a file; use --gin_file")
        if self.current.type != tokenize.STRING:
            raise self._wrong("expected the name of a file in quotes; write include 'file.gin'")
        self.statements.append(Include(str(self._strings()), self.origin(line)))

    def _end_of_line(self) -> None:
        self._skip(tokenize.COMMENT)
        if self.current.type in (tokenize.NEWLINE, tokenize.ENDMARKER):
            return
        found = self.current.string
        if found == "," and self.key:
            raise self._wrong("a value ends at the comma; put several values in brackets: [a, b]")
        if found == ";":
            raise self._wrong("one statement a line; begin a new line instead of ';'")
        if found == "=":
            raise self._wrong("a second '=' in one statement; one statement a line")
        raise self._wrong(f"expected the end of the line, found {self._shown(found)}{self._quoting()}")
