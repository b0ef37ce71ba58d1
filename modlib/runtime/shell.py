"""Commands as a person types them into a shell."""

from __future__ import annotations

import shlex
from collections.abc import Iterable

_SPECIAL = frozenset('"$`\\!\n')  # within double quotes; the ! is an interactive shell's history


def quoted(word: str) -> str:
    """One word for a shell, with the quotes that read best: `"BASE='my_model'"` where `shlex` has `'BASE='"'"'...`."""
    if "'" in word and not _SPECIAL & set(word):
        return f'"{word}"'
    return shlex.quote(word)


def command_line(words: Iterable[str]) -> str:
    """Words as a line for a shell; a Python file gets `python` in front."""
    words = list(words)
    line = " ".join(map(quoted, words))
    return f"python {line}" if words and words[0].endswith(".py") else line


def broken_up(words: Iterable[str], width: int) -> str:
    """As `command_line`, in lines of at most `width` where that can be, each but the last ending in a backslash."""
    words = list(words)
    pieces = [*(["python"] if words and words[0].endswith(".py") else []), *map(quoted, words)]
    lines = [""]
    for piece in pieces:
        if lines[-1] and len(lines[-1]) + len(piece) + 3 > width:
            lines[-1] += " \\"
            lines.append("    " + piece)
        else:
            lines[-1] += f" {piece}" if lines[-1] else piece
    return "\n".join(lines)
