"""Reads the text of a gin file into statements, each with its place; goes on after an error to find them all."""

from __future__ import annotations

import ast
import io
import keyword
import re
import tokenize
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from modlib.config.secrets import is_secret_name
from modlib.config.values import Items, Literal, MacroUse, Node, Operation, Pairs, Reference

T = TypeVar("T")
SKIPPED = (tokenize.COMMENT, tokenize.NL)
PRECEDENCE = {"+": 1, "-": 1, "*": 2, "/": 2, "//": 2, "%": 2}
WORDS = {"true": "True", "false": "False", "none": "None", "null": "None", "yes": "True", "no": "False"}
NUMBERS = {"inf": "float('inf')", "infinity": "float('inf')", "nan": "float('nan')"}


@dataclass(frozen=True)
class Origin:
    """Where a statement stands.

    Args:
        source: The file as the user knows it, or `--gin_param #1`.
        line: Line in the file; None for a parameter of the command line.
        order: Position among all statements of the run.
    """

    source: str
    line: int | None = None
    order: int = 0

    @property
    def from_command_line(self) -> bool:
        """Whether it is a --gin_param."""
        return self.line is None

    def __str__(self) -> str:
        return self.source if self.line is None else f"{self.source}:{self.line}"


@dataclass(frozen=True)
class Binding:
    """`scope/selector.parameter = value`."""

    scope: tuple[str, ...]
    selector: str
    parameter: str
    value: Node
    origin: Origin


@dataclass(frozen=True)
class Macro:
    """`NAME = value`."""

    name: str
    value: Node
    origin: Origin


@dataclass(frozen=True)
class Import:
    """`import a.b`, or `from a import b`."""

    module: str
    origin: Origin


@dataclass(frozen=True)
class Include:
    """`include 'file.gin'`."""

    name: str
    origin: Origin


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong, and where; `key` is what the broken statement would have bound."""

    origin: Origin
    text: str
    key: str = ""

    def __str__(self) -> str:
        return f"{self.origin}: {self.text}"


Statement = Binding | Macro | Import | Include


class _Wrong(Exception):
    def __init__(self, text: str, line: int) -> None:
        super().__init__(text)
        self.line = line


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


class _Reader:
    """A recursive-descent parser over Python's tokens; gin's syntax is made of them."""

    def __init__(self, text: str, source: str, is_file: bool) -> None:
        self.text = text
        self.source = source
        self.is_file = is_file
        self.statements: list[Statement] = []
        self.problems: list[Problem] = []
        self.key = ""  # of the binding being read, for hints
        self.tokens = self._tokenize()
        self.position = 0

    def origin(self, line: int) -> Origin:
        return Origin(self.source, line if self.is_file else None)

    def _tokenize(self) -> list[tokenize.TokenInfo]:
        tokens: list[tokenize.TokenInfo] = []
        try:
            for token in tokenize.generate_tokens(io.StringIO(self.text.removeprefix("\ufeff")).readline):
                if token.type == tokenize.ERRORTOKEN and not token.string.strip():
                    continue  # spaces before a character that Python does not know
                tokens.append(token)
        except (tokenize.TokenError, SyntaxError) as error:
            line = self._where(error)
            text = self._token_problem(error)
            if "bracket" in text:
                line = _open_bracket(tokens) or line
            self.problems.append(Problem(self.origin(line), text))
            # an open bracket swallowed the rest: keep the statements before it
            while tokens and tokens[-1].type != tokenize.NEWLINE:
                tokens.pop()
            tokens.append(tokenize.TokenInfo(tokenize.ENDMARKER, "", (line, 0), (line, 0), ""))
        return tokens

    def _where(self, error: Exception) -> int:
        if isinstance(error, SyntaxError):
            return error.lineno or 1
        return error.args[1][0] if len(error.args) > 1 else 1

    def _token_problem(self, error: Exception) -> str:
        text = str(error.args[0])
        if "multi-line string" in text or "unterminated triple" in text:
            return "a string that starts with three quotes is never closed; close it"
        if "multi-line statement" in text or "was never closed" in text:
            return "a bracket is never closed; close it"
        if "unindent" in text or "dedent" in text:
            return "the indentation matches no line above; indent all lines of a block alike"
        return f"{text}; correct it"

    # statements

    def read(self) -> None:
        while self._skip(*SKIPPED, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT).type != tokenize.ENDMARKER:
            before = self.position
            self.key = ""
            try:
                self._statement()
            except _Wrong as wrong:
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
        elif self.current.string == "=":
            self.key = word
            self.position += 1
            self._bind(scope, name, self._value(), line)
        elif self.current.string == ":":
            self._block(scope, name, line)
            return
        else:
            raise self._wrong(f"expected '=' after {word}; write {word} = value")
        self._end_of_line()

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
            raise self._wrong(f"after '{selector}:' begin a new line, and indent it; or write {selector}.parameter = value")
        if self._skip(*SKIPPED, tokenize.NEWLINE).type != tokenize.INDENT:
            self.problems.append(Problem(self.origin(line), f"the block {selector} is empty; indent its lines, or remove it"))
            return
        self.position += 1
        while self._skip(*SKIPPED, tokenize.NEWLINE).type not in (tokenize.DEDENT, tokenize.ENDMARKER):
            before = self.position
            try:
                self._block_line(scope, selector)
            except _Wrong as wrong:
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
        if self.current.string != "=":
            raise self._wrong(f"{expected}; write {parameter} = value")
        self.key = f"{'/'.join((*scope, selector))}.{parameter}"
        self.position += 1
        self.statements.append(Binding(scope, selector, parameter, self._value(), self.origin(line)))
        self._end_of_line()

    def _import(self, word: str, line: int) -> None:
        _, module = self._scoped_name("the name of a module", scoped=False)
        if word == "from":
            if self.current.string != "import":
                raise self._wrong(f"expected 'import' after 'from {module}'; write import {module}")
            self.position += 1
            _, name = self._scoped_name("a name", scoped=False)
            if module == "__gin__":
                raise _Wrong(f"gin's {name} is not supported; import the module, and use @component in it", line)
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

    # values

    def _value(self) -> Node:
        if self.current.type in (tokenize.NEWLINE, tokenize.ENDMARKER, tokenize.COMMENT):
            raise self._wrong(f"{self.key} has no value; write {self.key} = value")
        return self._sum(1)

    def _sum(self, least: int) -> Node:
        left = self._unary()
        while (level := PRECEDENCE.get(self._skip_in_brackets().string, 0)) >= least and self.current.type == tokenize.OP:
            symbol = self._next().string
            self._skip_in_brackets()
            left = Operation(symbol, (left, self._sum(level + 1)))
        return left

    def _unary(self) -> Node:
        if self.current.string in ("-", "+"):
            symbol = self._next().string
            operand = self._unary()
            if isinstance(operand, Literal) and type(operand.value) in (int, float):
                return Literal(-operand.value if symbol == "-" else operand.value)
            return Operation(symbol, (operand,))
        base = self._atom()
        if self.current.string == "**":
            self.position += 1
            return Operation("**", (base, self._unary()))
        return base

    def _atom(self) -> Node:
        self._skip_in_brackets()
        token = self.current
        if token.type == tokenize.NUMBER:
            return Literal(self._number())
        if token.type == tokenize.STRING:
            return Literal(self._strings())
        if token.type == tokenize.NAME:
            return self._word()
        if token.string == "@":
            return self._reference()
        if token.string == "%":
            return self._macro()
        if token.string in ("(", "["):
            return self._sequence()
        if token.string == "{":
            return self._dict()
        if token.string[:1] in ("'", '"'):
            raise self._wrong(f"the string {self._shown(self._rest())} is never closed; close its quotes")
        raise self._wrong(f"expected a value, found {self._shown(token.string)}{self._quoting()}")

    def _number(self) -> int | float:
        token = self._next()
        try:
            value = ast.literal_eval(token.string)
        except (SyntaxError, ValueError):
            raise _Wrong(f"{token.string} is not a number; correct it", token.start[0]) from None
        if isinstance(value, complex):
            raise _Wrong(f"{token.string} is a complex number; use a real one", token.start[0])
        if self.current.type in (tokenize.NAME, tokenize.NUMBER) and self.current.start == token.end:
            raise _Wrong(f"{token.string}{self.current.string} is not a number{self._quoting()}", token.start[0])
        return value

    def _strings(self) -> str | bytes:
        first = self.current
        parts = []
        while self.current.type == tokenize.STRING:
            parts.append(self._next().string)
            self._skip_in_brackets()
        try:
            value = ast.literal_eval(" ".join(parts))
        except (SyntaxError, ValueError):
            if re.match(r"[rRbB]*[fFtT]", first.string):
                raise _Wrong("a format string is not a value; write the text itself in quotes", first.start[0]) from None
            raise _Wrong(f"{' '.join(parts)} is not a string; correct it", first.start[0]) from None
        return value

    def _word(self) -> Node:
        token = self._next()
        word = token.string
        if word in ("True", "False", "None"):
            return Literal({"True": True, "False": False, "None": None}[word])
        if word == "float" and self.current.string == "(":
            return self._float()
        if meant := WORDS.get(word.lower()):
            raise _Wrong(f"{word} is not a value; write {meant}", token.start[0])
        if meant := NUMBERS.get(word.lower()):
            raise _Wrong(f"{word} is not a value; write {meant}", token.start[0])
        if keyword.iskeyword(word) or self.current.string == "(":
            raise _Wrong(f"{word} cannot be used here; a value is a literal, @Component, %MACRO or arithmetic", token.start[0])
        self.position -= 1
        raise _Wrong(f"{self._shown(self._rest())} is not a value{self._quoting()}", token.start[0])

    def _float(self) -> Node:
        line = self._next().start[0]
        word = self._strings() if self.current.type == tokenize.STRING else ""
        if word not in ("inf", "-inf", "nan") or self._next().string != ")":
            raise _Wrong("only float('inf'), float('-inf') and float('nan') can be written so; write the number", line)
        return Literal(float(word))

    def _reference(self) -> Reference:
        self.position += 1
        scope, selector = self._scoped_name("the name of a component after '@'")
        called = self.current.string == "("
        if called:
            self.position += 1
            if self._skip_in_brackets().string != ")":
                raise self._wrong(f"arguments cannot be given here; write @{selector}() and bind {selector}.<parameter>")
            self.position += 1
        return Reference(selector, scope, called)

    def _macro(self) -> MacroUse:
        self.position += 1
        scope, name = self._scoped_name("the name of a macro after '%'")
        return MacroUse("/".join((*scope, name)))

    def _sequence(self) -> Node:
        opening = self._next()
        closing = ")" if opening.string == "(" else "]"
        items, comma = self._list(closing, self._item)
        if closing == ")" and len(items) == 1 and not comma:
            return items[0]
        return Items(tuple if closing == ")" else list, tuple(items))

    def _item(self) -> Node:
        self._skip_in_brackets()
        item = self._sum(1)
        self._skip_in_brackets()
        return item

    def _dict(self) -> Node:
        self.position += 1
        pairs, _ = self._list("}", self._pair)
        return Pairs(tuple(pairs))

    def _pair(self) -> tuple[Node, Node]:
        key = self._item()
        if self.current.string != ":":
            what = "a set is not a value; use a list" if self.current.string in (",", "}") else "expected ':' after a key"
            raise self._wrong(what)
        self.position += 1
        return key, self._item()

    def _list(self, closing: str, read: Callable[[], T]) -> tuple[list[T], bool]:
        found: list[T] = []
        comma = False
        while self._skip_in_brackets().string != closing:
            found.append(read())
            comma = self._skip_in_brackets().string == ","
            if comma:
                self.position += 1
            elif self.current.string != closing:
                raise self._wrong(f"expected ',' or '{closing}', found {self._shown(self.current.string)}")
        self.position += 1
        return found, comma

    # names and tokens

    def _scoped_name(self, expected: str, scoped: bool = True) -> tuple[tuple[str, ...], str]:
        """`scope/scope/module.Name`, without spaces inside."""
        parts: list[str] = []
        end = self.current.start
        while self.current.start == end and self.current.type == tokenize.NAME:
            parts.append(self.current.string)
            end = self._next().end
            following = self.tokens[min(self.position + 1, len(self.tokens) - 1)]
            joins = self.current.string == "." or (self.current.string == "/" and scoped)
            if not joins or self.current.start != end or following.type != tokenize.NAME or following.start != self.current.end:
                break
            parts.append(self.current.string)
            end = self._next().end
        if not parts:
            raise self._wrong(f"expected {expected}, found {self._shown(self.current.string)}")
        *scope, name = "".join(parts).split("/")
        if any("." in part for part in scope):
            raise self._wrong(f"a scope has no dots: {'/'.join(scope)}; write scope/Component.parameter")
        return tuple(scope), name

    @property
    def current(self) -> tokenize.TokenInfo:
        return self.tokens[self.position]

    def _next(self) -> tokenize.TokenInfo:
        token = self.current
        self.position = min(self.position + 1, len(self.tokens) - 1)
        return token

    def _skip(self, *types: int) -> tokenize.TokenInfo:
        while self.current.type in types:
            self.position += 1
        return self.current

    def _skip_in_brackets(self) -> tokenize.TokenInfo:
        return self._skip(*SKIPPED)

    # texts

    def _wrong(self, text: str) -> _Wrong:
        return _Wrong(text, self.current.start[0])

    def _rest(self) -> str:
        """The rest of this line, as written."""
        rest = self.current.line[self.current.start[1] :].strip()
        return re.split(r"\s+#", rest)[0] if rest else self.current.string

    def _shown(self, text: str) -> str:
        if is_secret_name(self.key):
            return "***"
        return text.strip() or "the end of the line"

    def _quoting(self) -> str:
        """The remedy for a string without quotes, as it has to be typed."""
        if not self.key:
            return ""
        line = self.current.line
        _, _, written = line.partition("=")
        written = re.split(r"\s+#", written.strip())[0].rstrip()
        if not re.match(r"[A-Za-z_/~.][^'\"\[\](){}@%]*$", written) and not re.match(r"[\w.:/~-]+$", written):
            return "; a value is a literal, @Component, %MACRO or arithmetic"
        written = "***" if is_secret_name(self.key) else written
        if self.is_file:
            return f"; strings need quotes: {self.key.rsplit('.', 1)[-1] if line[:1].isspace() else self.key} = '{written}'"
        return f"; strings need quotes: --gin_param \"{self.key}='{written}'\""


def _open_bracket(tokens: list[tokenize.TokenInfo]) -> int | None:
    """The line of the bracket that is never closed."""
    opened: list[int] = []
    for token in tokens:
        if token.type == tokenize.OP and token.string in "([{":
            opened.append(token.start[0])
        elif token.type == tokenize.OP and token.string in ")]}" and opened:
            opened.pop()
    return opened[-1] if opened else None
