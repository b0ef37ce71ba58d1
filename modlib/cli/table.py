"""Tables for people on a terminal, and tab-separated lines for everything else."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence


def print_table(
    columns: Sequence[str], rows: Sequence[Sequence[str]], title: str = "", colours: Mapping[str, str] | None = None
) -> None:
    """Print rows: as a table when stdout is a terminal, else one line a row with tabs between the cells.

    Args:
        columns: Their heads.
        rows: Their cells.
        title: Above the table.
        colours: On a terminal, of the cells with exactly this text.
    """
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
        table.add_row(*(Text(cell, style=(colours or {}).get(cell, "")) for cell in row))
    Console().print(table)
