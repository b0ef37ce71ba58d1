"""The one rich console: it shows texts as they are, since paths, names and words of other programs hold brackets."""

from __future__ import annotations

from typing import Any

from rich.console import Console


class PlainConsole(Console):
    """A console on which `[a]` is no style and `:smile:` no picture; styles are given as rich.text.Text.

    Args:
        options: Of rich.console.Console.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"markup": False, "highlight": False, "emoji": False, **options})
