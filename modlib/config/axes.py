"""Reads the axes of a sweep: `LR=[1e-4,3e-4]`, lists zipped with `;`, or draws such as `LR=loguniform(1e-5,1e-2)`."""

from __future__ import annotations

import math
import re
import tokenize
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from modlib.config.files import NotFound, find, shown
from modlib.config.statements import Problem
from modlib.config.suggestions import did_you_mean
from modlib.config.tokens import SKIPPED, Wrong
from modlib.config.value_syntax import ValueReader
from modlib.config.values import Items, MacroUse, Node, Operation, ValueProblem, evaluate, format_value, walk
from modlib.runtime.errors import ConfigError
from modlib.runtime.secrets import is_secret_name, why_secret

RANGES = ("uniform", "loguniform", "integers")
DISTRIBUTIONS = (*RANGES, "choice")
EXAMPLE = '--sweep "AdamW.lr=[1e-4,3e-4]"'


@dataclass(frozen=True)
class Swept:
    """One binding of an axis, and the values that it takes.

    Args:
        key: What is bound, `LR` or `val/Evaluator.every`.
        choices: The values as gin texts; empty for a range.
        distribution: How a value is drawn; None: each value of `choices` in turn.
        bounds: The least and the largest value of a range, both of which can be drawn.
    """

    key: str
    choices: tuple[str, ...] = ()
    distribution: str | None = None
    bounds: tuple[float, float] | None = None

    def __str__(self) -> str:
        inside = ", ".join(map(short, self.bounds)) if self.bounds else f"[{', '.join(self.choices)}]"
        if self.distribution is None:
            return f"{self.key}={inside}"
        return f"{self.key}={self.distribution}({inside})"


@dataclass(frozen=True)
class Axis:
    """What one --sweep varies: the bindings of an axis change together.

    Args:
        swept: The bindings.
        origin: `--sweep #1`, or `sweeps/lr.gin:3`.
    """

    swept: tuple[Swept, ...]
    origin: str

    @property
    def is_random(self) -> bool:
        """Whether its values are drawn."""
        return self.swept[0].distribution is not None

    def __str__(self) -> str:
        return "; ".join(map(str, self.swept))


def short(value: Any) -> str:
    """A value as gin text, like `format_value`, with small and large floats in their short form: 1e-4, not 0.0001."""
    match value:
        case float() if value and math.isfinite(value) and not 1e-2 <= abs(value) < 1e5:
            written = format_value(value)
            for digits in range(17):
                mantissa, _, exponent = f"{value:.{digits}e}".partition("e")
                if float(brief := f"{mantissa}e{int(exponent)}") == value:
                    return brief if len(brief) < len(written) else written
        case list():
            return f"[{', '.join(map(short, value))}]"
        case tuple():
            return f"({', '.join(map(short, value))}{',' if len(value) == 1 else ''})"
    return format_value(value)


def read_axes(flags: Sequence[str]) -> list[Axis]:
    """The axes that --sweep flags give: each an axis, or the name of a file with one axis a line.

    Args:
        flags: As written; a text without `=` is the name of a file, found as gin files are.

    Raises:
        ConfigError: With every problem found.
    """
    axes: list[Axis] = []
    problems: list[str] = []
    for number, flag in enumerate(flags, 1):
        source = f"--sweep #{number}"
        is_file = "=" not in flag and flag.strip().endswith(".gin")
        if is_file:
            try:
                path = find(flag.strip())
                flag, source = path.read_text(encoding="utf-8"), shown(path)
            except (NotFound, OSError, UnicodeDecodeError) as error:
                problems.append(f"{source}: {error}")
                continue
        found, wrong = parse_axes(flag, source, is_file=is_file)
        axes += found
        problems += map(str, wrong)
        if not found and not wrong:
            problems.append(f"{source}: there is no axis in it; give one, as in {EXAMPLE}")
    first: dict[str, Axis] = {}
    for axis in axes:
        for swept in axis.swept:
            if swept.key in first:
                problems.append(
                    f"{axis.origin}: {swept.key} is swept by {first[swept.key].origin} already; put all of its values "
                    "into one axis"
                )
            first.setdefault(swept.key, axis)
    if problems:
        raise ConfigError(problems)
    return axes


def parse_axes(text: str, source: str, *, is_file: bool) -> tuple[list[Axis], list[Problem]]:
    """Read axes from the text of one --sweep or of a file.

    Args:
        text: What was written.
        source: `--sweep #1`, or the name of the file.
        is_file: Whether origins have line numbers, and there may be several axes, one a line.
    """
    reader = _AxisReader(text, source, is_file)
    reader.read()
    return reader.axes, reader.problems


class _AxisReader(ValueReader):
    """Axes, one a line; after an error it goes on with the next line."""

    def __init__(self, text: str, source: str, is_file: bool) -> None:
        super().__init__(text, source, is_file)
        self.axes: list[Axis] = []
        if self.problems and not is_file:  # the text could not be cut into tokens: a shell took something away
            first = self.problems[0]
            self.problems = [Problem(first.origin, f"{first.text}; in a shell, quote the whole axis: {EXAMPLE}")]

    def read(self) -> None:
        while self._skip(*SKIPPED, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT).type != tokenize.ENDMARKER:
            before, self.key = self.position, ""
            try:
                self.axes.append(self._axis())
            except Wrong as wrong:
                self.problems.append(Problem(self.origin(wrong.line), str(wrong), self.key))
                self.position = max(self.position, before)
                while self.current.type not in (tokenize.NEWLINE, tokenize.ENDMARKER):
                    self.position += 1

    def _axis(self) -> Axis:
        line = self.current.start[0]
        swept = [self._swept()]
        while self._skip(tokenize.COMMENT).string == ";":
            self.position += 1
            swept.append(self._swept())
        if self.current.type not in (tokenize.NEWLINE, tokenize.ENDMARKER):
            raise self._wrong(f"expected ';' or the end of the axis, found {self._shown(self.current.string)}")
        self.key = ""
        keys = [one.key for one in swept]
        if twice := [key for key in keys if keys.count(key) > 1]:
            raise Wrong(f"{twice[0]} is twice in one axis; leave one out", line)
        if len({one.distribution is None for one in swept}) > 1:
            raise Wrong(
                f"{' and '.join(keys)} are zipped, so all must be lists or all be drawn at random; give each its own "
                "--sweep to combine them",
                line,
            )
        self._check_lists(swept, line)
        return Axis(tuple(swept), str(self.origin(line)))

    def _check_lists(self, swept: list[Swept], line: int) -> None:
        if swept[0].distribution is not None:
            return
        lengths = [len(one.choices) for one in swept]
        if len(set(lengths)) > 1:
            counts = " and ".join(f"{one.key} {length}" for one, length in zip(swept, lengths))
            raise Wrong(
                f"zipped lists must have equally many values ({counts}); give each its own --sweep for a grid", line
            )
        together = list(zip(*(one.choices for one in swept)))
        if twice := [values for values in together if together.count(values) > 1]:
            keys, values = " and ".join(one.key for one in swept), " and ".join(twice[0])
            raise Wrong(f"{keys} take{'s' * (len(swept) == 1)} {values} twice; leave one out", line)

    def _swept(self) -> Swept:
        self._skip(*SKIPPED)
        scope, name = self._scoped_name("NAME=[value, value] or Component.parameter=[value, value]")
        key = "/".join((*scope, name))
        if self.current.string != "=":
            raise self._wrong(f"expected '=' after {key}; write {self._form(f'{key}=[value, value]')}, or name a file")
        if is_secret_name(key):
            raise self._wrong(f"{key} holds a secret, which would be written into names; it cannot be swept")
        self.key = key
        self.position += 1
        opening = self._skip(tokenize.COMMENT)
        if opening.string in ("[", "("):
            return Swept(key, self._choices())
        following = self.tokens[min(self.position + 1, len(self.tokens) - 1)]
        if opening.type == tokenize.NAME and opening.string != "float" and following.string == "(":
            return self._drawn(key)
        if opening.type in (tokenize.NEWLINE, tokenize.ENDMARKER) or opening.string == ";":
            raise self._wrong(f"{key} has no values; write {self._form(f'{key}=[value, value]')}")
        written = _in_quotes(self._rest())
        raise self._wrong(
            f"{key} ({self._rest()}) must be a list of values; write {self._form(f'{key}=[{written}]')}, or give one "
            f'value to all points with --gin_param "{key}={written}"'
        )

    def _choices(self) -> tuple[str, ...]:
        """The values of a list, each as gin text."""
        line = self.current.start[0]
        closing = ")" if self._next().string == "(" else "]"
        texts, _ = self._list(closing, self._choice)
        if not texts:
            raise Wrong(f"{self.key} has no values; write {self._form(f'{self.key}=[value, value]')}", line)
        return tuple(texts)

    def _choice(self) -> str:
        self._skip_in_brackets()
        start = self.position
        node = self._item()
        if any(isinstance(part, MacroUse | Operation) for part in walk(node)):
            return self._text(start, self.position)
        try:
            value = evaluate(node, str)
        except ValueProblem as problem:  # a key twice in a dict
            raise self._wrong(str(problem)) from None
        for part in walk(node):
            if not isinstance(part, Items) and why_secret(self.key, getattr(part, "value", None)):
                raise self._wrong(f"a value of {self.key} looks like a secret; it cannot be swept")
        return short(value)

    def _text(self, start: int, end: int) -> str:
        """What was written from one token to another, without comments and line breaks."""
        written, last = "", self.tokens[start]
        for token in self.tokens[start:end]:
            if token.type not in SKIPPED and token.string:
                apart = token.start[0] != last.end[0] or token.start[1] > last.end[1]
                written += (" " if written and apart else "") + token.string
                last = token
        return written

    def _drawn(self, key: str) -> Swept:
        token = self._next()
        kind = token.string
        if kind not in DISTRIBUTIONS:
            hint = did_you_mean(kind, DISTRIBUTIONS) or f" Write one of {', '.join(DISTRIBUTIONS)}"
            raise Wrong(f"{kind} is no distribution to draw {key} from.{hint}", token.start[0])
        self.position += 1
        if kind == "choice":
            if self._skip_in_brackets().string not in ("[", "("):
                raise self._wrong(f"choice takes a list; write {self._form(f'{key}=choice([value, value])')}")
            choices = self._choices()
            if self._skip_in_brackets().string == ",":
                self.position += 1
            if self._skip_in_brackets().string != ")":
                raise self._wrong(f"choice takes one list; write {self._form(f'{key}=choice([value, value])')}")
            self.position += 1
            return Swept(key, choices, "choice")
        nodes, _ = self._list(")", self._item)
        return Swept(key, (), kind, self._bounds(kind, nodes, token.start[0]))

    def _bounds(self, kind: str, nodes: list[Node], line: int) -> tuple[float, float]:
        form = self._form(f"{self.key}={kind}({'1, 8' if kind == 'integers' else '1e-5, 1e-2'})")
        kinds = (int,) if kind == "integers" else (int, float)
        if any(isinstance(part, MacroUse) for node in nodes for part in walk(node)):
            raise Wrong(f"the bounds of {kind} for {self.key} must be numbers, not macros; write {form}", line)
        try:
            values = [evaluate(node, str) for node in nodes]
        except ValueProblem as problem:
            raise Wrong(str(problem), line) from None
        if len(values) != 2 or any(type(value) not in kinds or not math.isfinite(value) for value in values):
            what = "two whole numbers" if kind == "integers" else "two numbers"
            raise Wrong(f"{kind} for {self.key} takes {what}, the least and the largest value; write {form}", line)
        low, high = values
        if not low < high:
            raise Wrong(
                f"{kind} for {self.key}: the least value ({short(low)}) must be less than the largest "
                f"({short(high)}); exchange or correct them",
                line,
            )
        if kind == "loguniform" and low <= 0:
            raise Wrong(
                f"loguniform for {self.key}: the least value ({short(low)}) must be greater than 0; use uniform, or "
                "a small positive number",
                line,
            )
        return low, high

    # texts

    def _form(self, axis: str) -> str:
        return axis if self.is_file else f'--sweep "{axis}"'

    def _rest(self) -> str:
        """The rest of this value: to the end of an item of a list."""
        return re.split(r"[,;\])]", super()._rest())[0].strip() or self.current.string

    def _quoting(self) -> str:
        """The remedy for strings whose quotes are missing, or were taken by the shell."""
        match = re.search(rf"{re.escape(self.key)}\s*=\s*((?:choice\()?\[)([^\[\]]*)\]", self.text)
        if not self.key or not match:
            return "; a value is a literal, @Component, %MACRO or arithmetic"
        items = ",".join(_in_quotes(item.strip()) for item in match[2].split(",") if item.strip())
        whole = f"{self.key}={match[1]}{items}{'])' if match[1] != '[' else ']'}"
        return f"; strings need quotes: {self._form(whole)}"


def _in_quotes(item: str) -> str:
    """An item with the quotes that it needs when it is a word and not a number, a reference or a macro."""
    return item if re.match(r"""[-+\d.'"@%]|(True|False|None)$""", item) else f"'{item}'"
