"""`modlib data chunk`: a packed file as several."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from modlib.cli.data.made import Overwrite, print_made
from modlib.cli.progress_bar import progress_bar
from modlib.cli.report import reported


def command(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A packed token file.")],
    prefix: Annotated[str, typer.Argument(metavar="OUT_PREFIX", help="Of OUT_PREFIX-00000-of-00004.packed, ...")],
    num_chunks: Annotated[int | None, typer.Option("--num_chunks", help="So many, of about equal tokens.")] = None,
    max_tokens: Annotated[int | None, typer.Option("--max_tokens", help="Or as few as hold so many each.")] = None,
    overwrite: Overwrite = False,
) -> Path:
    """Cut a packed file into several at ends of documents; one after the other, they are the file."""
    with reported("a chunk is complete or not there"), progress_bar(f"chunk {file.name}", "tokens") as progress:
        from modlib.data.rewriting.chunks import chunk

        made = chunk(file, prefix, num_chunks=num_chunks, max_tokens=max_tokens, overwrite=overwrite, progress=progress)
    for path, header in made:
        print_made(path, header)
    return Path(prefix)
