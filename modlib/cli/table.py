"""Tables for people on a terminal, and tab-separated lines for everything else."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.text import Text


def print_table(
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    title: str = "",
    colours: Mapping[str, str] | None = None,
    *,
    header: bool = False,
) -> None:
    """Print rows: as a table when stdout is a terminal, else one line a row with tabs between the cells.

    Args:
        columns: Their heads.
        rows: Their cells.
        title: Above the table.
        colours: On a terminal, of the cells with exactly this text.
        header: Whether the heads are printed where stdout is no terminal, too.
    """
    if not sys.stdout.isatty():
        _print_lines(columns, rows, header)
        return
    from rich.table import Table
    from rich.text import Text

    from modlib.runtime.console import PlainConsole

    table = Table(title=title or None, title_justify="left", header_style="bold", pad_edge=False)
    for number, column in enumerate(columns):
        table.add_column(column, overflow="fold", no_wrap=False, style="bold" if number == 0 else "")
    for row in rows:
        table.add_row(*(Text(cell, style=(colours or {}).get(cell, "")) for cell in row))
    PlainConsole().print(table)


def print_remarked(
    columns: Sequence[str], rows: Sequence[Sequence[str]], colours: Mapping[str, str] | None = None
) -> None:
    """Print rows that begin with a name and end with a remark, which may be long or empty.

    On a terminal too narrow for all, the remark goes below its row; and if need be, the row below its name. Columns
    without a value are left out there.

    Args:
        columns: Their heads; printed where stdout is no terminal, too.
        rows: Their cells; at least one row.
        colours: On a terminal, of the cells with exactly this text.
    """
    if not sys.stdout.isatty():
        _print_lines(columns, rows, header=True)
        return
    from modlib.runtime.console import PlainConsole

    console = PlainConsole()
    for line in remarked(columns, rows, console.width, colours or {}):
        console.print(line, no_wrap=True, overflow="ignore", crop=False)


def remarked(
    columns: Sequence[str], rows: Sequence[Sequence[str]], width: int, colours: Mapping[str, str]
) -> Iterator[Text]:
    """The lines of `print_remarked` on a terminal of so many columns."""
    from rich.text import Text

    table = [columns, *rows]
    shown = [number for number in range(len(columns)) if number == 0 or any(row[number] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    remark = len(columns) - 1
    beside = [number for number in shown if number != remark]
    needed = sum(widths[number] + 2 for number in beside)
    remark_fits = remark not in shown or needed + widths[remark] <= width
    name_fits = needed - 2 <= width
    for row in table:
        line = Text()
        for number in beside:
            style = "bold" if row is columns or number == 0 else colours.get(row[number], "")
            if number == 0 and not name_fits:
                yield Text(row[0], style=style)
                line.append("  ")
                continue
            line.append(row[number], style=style).append(" " * (widths[number] - len(row[number]) + 2))
        if remark_fits and remark in shown:
            line.append(row[remark], style="bold" if row is columns else "")
        line.rstrip()
        yield line
        if not remark_fits and row is not columns:
            for part in textwrap.wrap(row[remark], max(20, width - 4)):
                yield Text(f"    {part}", style="dim")


def _print_lines(columns: Sequence[str], rows: Sequence[Sequence[str]], header: bool) -> None:
    for row in [*([columns] if header else []), *rows]:
        print("\t".join(cell.replace("\n", "; ").replace("\t", " ") for cell in row))
