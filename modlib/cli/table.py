"""Tables for people on a terminal, and tab-separated lines for everything else."""

from __future__ import annotations

import sys
from collections.abc import Sequence


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]], title: str = "") -> None:
    """Print rows: as a table when stdout is a terminal, else one line a row with tabs between the cells."""
    if not sys.stdout.isatty():
        for row in rows:
            print("\t".join(cell.replace("\n", "; ").replace("\t", " ") for cell in row))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title or None, title_justify="left", header_style="bold", pad_edge=False)
    for number, column in enumerate(columns):
        table.add_column(column, overflow="fold", no_wrap=False, style="bold" if number == 0 else "")
    for row in rows:
        table.add_row(*map(Text, row))
    Console().print(table)
