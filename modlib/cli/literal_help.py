"""Help texts as they are written: rich would take the brackets of `modlib[plots]` for a style and drop them."""

from __future__ import annotations

import copy
from typing import Any

from typer.core import TyperCommand


class LiteralHelp(TyperCommand):
    """A command whose help shows its brackets."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        from rich.markup import escape

        shown = copy.copy(self)
        shown.help = None if self.help is None else escape(self.help)
        shown.params = [copy.copy(param) for param in self.params]
        for param in shown.params:
            if text := getattr(param, "help", None):
                param.help = escape(text)  # type: ignore[attr-defined]
        super(LiteralHelp, shown).format_help(ctx, formatter)
