"""`modlib data merge`: several packed files as one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from modlib.cli.data.made import NOT_MADE, Overwrite, print_made
from modlib.cli.progress_bar import progress_bar
from modlib.cli.report import reported


def command(
    files: Annotated[list[Path], typer.Argument(metavar="FILE... OUT", help="Packed files, then the file to make.")],
    overwrite: Overwrite = False,
) -> Path:
    """Write the documents of several packed files into one, in the order given; all must share one tokenizer."""
    with reported(NOT_MADE), progress_bar("merge", "tokens") as progress:
        from modlib.data.rewriting.merge import merge

        header = merge(files[:-1], files[-1], overwrite=overwrite, progress=progress)
    print_made(files[-1], header)
    return files[-1]
