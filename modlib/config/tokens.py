"""A cursor over the tokens of a gin text; gin's syntax is made of Python's tokens."""

from __future__ import annotations

import io
import re
import tokenize

from modlib.config.statements import Origin, Problem, Statement
from modlib.runtime.secrets import is_secret_name

SKIPPED = (tokenize.COMMENT, tokenize.NL)


class Wrong(Exception):
    """A text that cannot be read, and its line."""

    def __init__(self, text: str, line: int) -> None:
        super().__init__(text)
        self.line = line


class Cursor:
    """Tokens with a position, names made of several tokens, and the words of error texts."""

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
            line, text, opened = self._where(error), self._token_problem(error), _open_bracket(tokens)
            if "unterminated string" in text:  # Python 3.12 and later stop here; go on without the line
                self._blank_line(line)
                return self._tokenize()
            if opened or "bracket" not in text:
                self.problems.append(Problem(self.origin(opened or line), text))
                # what an open bracket or string swallowed cannot be read: keep the statements before it
                while tokens and tokens[-1].type != tokenize.NEWLINE:
                    tokens.pop()
            else:  # a bracket too many; the statement that has it will tell
                tokens.append(tokenize.TokenInfo(tokenize.NEWLINE, "", (line, 0), (line, 0), ""))
            tokens.append(tokenize.TokenInfo(tokenize.ENDMARKER, "", (line, 0), (line, 0), ""))
        return tokens

    def _blank_line(self, line: int) -> None:
        lines = self.text.splitlines(keepends=True)
        string = re.search(r"['\"].*", lines[line - 1])
        shown = (
            "***" if is_secret_name(lines[line - 1].partition("=")[0].strip()) or not string else string.group().strip()
        )
        self.problems.append(Problem(self.origin(line), f"the string {shown} is never closed; close its quotes"))
        lines[line - 1] = "\n"
        self.text = "".join(lines)

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

    def _scoped_name(self, expected: str, scoped: bool = True) -> tuple[tuple[str, ...], str]:
        """`scope/scope/module.Name`, without spaces inside."""
        parts: list[str] = []
        end = self.current.start
        while self.current.start == end and self.current.type == tokenize.NAME:
            parts.append(self.current.string)
            end = self._next().end
            following = self.tokens[min(self.position + 1, len(self.tokens) - 1)]
            joins = self.current.string == "." or (self.current.string == "/" and scoped)
            if (
                not joins
                or self.current.start != end
                or following.type != tokenize.NAME
                or following.start != self.current.end
            ):
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

    def _wrong(self, text: str) -> Wrong:
        return Wrong(text, self.current.start[0])

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
            name = self.key.rpartition(".")[2] if line[:1].isspace() else self.key
            return f"; strings need quotes: {name} = '{written}'"
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
