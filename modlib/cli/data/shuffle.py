"""`modlib data shuffle`: a packed file in another order."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from modlib.cli.data.made import NOT_MADE, Overwrite, print_made
from modlib.cli.progress_bar import progress_bar
from modlib.cli.report import reported


def command(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A packed token file.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The file to make.")],
    seed: Annotated[int, typer.Option("--seed", help="Another seed is another order.")],
    unit: Annotated[str, typer.Option("--unit", help="document, or block.")] = "document",
    block_tokens: Annotated[int | None, typer.Option("--block_tokens", help="Tokens per block.")] = None,
    memory_mib: Annotated[
        int, typer.Option("--memory_mib", help="Memory to stay below; the order does not change.")
    ] = 512,
    overwrite: Overwrite = False,
) -> Path:
    """Shuffle the documents of a packed file, or fixed blocks of tokens; a file may be larger than memory."""
    with reported(NOT_MADE), progress_bar(f"shuffle {file.name}", "tokens") as progress:
        from modlib.data.rewriting.shuffle import shuffle

        header = shuffle(
            file,
            out,
            seed=seed,
            unit=unit,  # type: ignore[arg-type]
            block_tokens=block_tokens,
            memory_mib=memory_mib,
            overwrite=overwrite,
            progress=progress,
        )
    print_made(out, header)
    return out
