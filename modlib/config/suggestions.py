"""Names that the user may have meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def similar(word: str, known: Iterable[str], most: int = 3) -> list[str]:
    """Known names close to a word, closest first; case is ignored."""
    names: dict[str, str] = {}
    for name in sorted(known):
        names.setdefault(name.lower(), name)
    return [names[match] for match in difflib.get_close_matches(word.lower(), names, n=most, cutoff=0.65)]


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """` Did you mean X?`, or nothing when no name is close."""
    close = similar(word, known)
    return f" Did you mean {' or '.join(close)}?" if close else ""
