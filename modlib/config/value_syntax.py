"""Reads a value: a literal, a container, `@Component`, `%MACRO`, or arithmetic on them."""

from __future__ import annotations

import ast
import keyword
import re
import tokenize
from collections.abc import Callable
from typing import TypeVar

from modlib.config.tokens import Cursor, Wrong
from modlib.config.values import Items, Literal, MacroUse, Node, Operation, Pairs, Reference
from modlib.runtime.secrets import is_secret_name

T = TypeVar("T")
MOST_DEPTH = 100  # brackets, signs and powers inside each other
PRECEDENCE = {"+": 1, "-": 1, "*": 2, "/": 2, "//": 2, "%": 2}
WORDS = {"true": "True", "false": "False", "none": "None", "null": "None", "yes": "True", "no": "False"}
NUMBERS = {"inf": "float('inf')", "infinity": "float('inf')", "nan": "float('nan')"}


class ValueReader(Cursor):
    """Recursive descent; each method leaves the position after what it read."""

    _depth = 0

    def _value(self) -> Node:
        if self.current.type in (tokenize.NEWLINE, tokenize.ENDMARKER, tokenize.COMMENT):
            raise self._wrong(f"{self.key} has no value; write {self.key} = value")
        return self._sum(1)

    def _sum(self, least: int) -> Node:
        left = self._unary()
        while (
            level := PRECEDENCE.get(self._skip_in_brackets().string, 0)
        ) >= least and self.current.type == tokenize.OP:
            symbol = self._next().string
            self._skip_in_brackets()
            left = Operation(symbol, (left, self._sum(level + 1)))
        return left

    def _unary(self) -> Node:
        """Every level of nesting passes here once."""
        if self._depth == MOST_DEPTH:
            raise self._wrong(f"{self.key} is nested more than {MOST_DEPTH} deep; write it flatter")
        self._depth += 1
        try:
            return self._signed()
        finally:
            self._depth -= 1

    def _signed(self) -> Node:
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
        if tokenize.tok_name[token.type] in ("FSTRING_START", "TSTRING_START"):  # Python 3.12 and later
            raise self._wrong("a format string is not a value; write the text itself in quotes")
        if token.string[:1] in ("'", '"'):
            raise self._wrong(f"the string {self._shown(self._rest())} is never closed; close its quotes")
        raise self._wrong(f"expected a value, found {self._shown(token.string)}{self._quoting()}")

    def _number(self) -> int | float:
        token = self._next()
        try:
            value = ast.literal_eval(token.string)
        except (SyntaxError, ValueError):
            raise Wrong(f"{token.string} is not a number; correct it", token.start[0]) from None
        if isinstance(value, complex):
            raise Wrong(f"{token.string} is a complex number; use a real one", token.start[0])
        if self.current.type in (tokenize.NAME, tokenize.NUMBER) and self.current.start == token.end:
            raise Wrong(f"{token.string}{self.current.string} is not a number{self._quoting()}", token.start[0])
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
                raise Wrong("a format string is not a value; write the text itself in quotes", first.start[0]) from None
            raise Wrong(f"{' '.join(parts)} is not a string; correct it", first.start[0]) from None
        return value

    def _word(self) -> Node:
        token = self._next()
        word = token.string
        if word in ("True", "False", "None"):
            return Literal({"True": True, "False": False, "None": None}[word])
        if word == "float" and self.current.string == "(":
            return self._float()
        if meant := WORDS.get(word.lower()):
            raise Wrong(f"{word} is not a value; write {meant}", token.start[0])
        if meant := NUMBERS.get(word.lower()):
            raise Wrong(f"{word} is not a value; write {meant}", token.start[0])
        if keyword.iskeyword(word) or self.current.string == "(":
            raise Wrong(
                f"{word} cannot be used here; a value is a literal, @Component, %MACRO or arithmetic", token.start[0]
            )
        self.position -= 1
        raise Wrong(f"{self._shown(self._rest())} is not a value{self._sign(word)}{self._quoting()}", token.start[0])

    def _sign(self, word: str) -> str:
        """The remedy for a component without `@` or a macro without `%`, told by how such names are written."""
        if self._rest() != word or is_secret_name(self.key):
            return ""
        if re.fullmatch(r"[A-Z][A-Z0-9_]+", word):
            return f"; a macro is written %{word}, a component @{word}"
        return f"; a component is written @{word}" if word[:1].isupper() else ""

    def _float(self) -> Node:
        line = self._next().start[0]
        word = self._strings() if self.current.type == tokenize.STRING else ""
        if word not in ("inf", "-inf", "nan") or self._next().string != ")":
            raise Wrong("only float('inf'), float('-inf') and float('nan') can be written so; write the number", line)
        return Literal(float(word))

    def _reference(self) -> Reference:
        self.position += 1
        scope, selector = self._scoped_name("the name of a component after '@'")
        called = self.current.string == "("
        if called:
            self.position += 1
            if self._skip_in_brackets().string != ")":
                raise self._wrong(
                    f"arguments cannot be given here; write @{selector}() and bind {selector}.<parameter>"
                )
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
            what = (
                "a set is not a value; use a list" if self.current.string in (",", "}") else "expected ':' after a key"
            )
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
