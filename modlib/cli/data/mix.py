"""`modlib data mix`: packed files mixed by weight."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from modlib.cli.data.made import NOT_MADE, Overwrite, print_made
from modlib.cli.progress_bar import progress_bar
from modlib.cli.report import reported
from modlib.cli.table import print_table
from modlib.runtime.errors import ConfigError
from modlib.runtime.units import format_percent


class By(StrEnum):
    """What the weights are of."""

    tokens = "tokens"
    documents = "documents"


def command(
    files: Annotated[list[Path], typer.Argument(metavar="FILE... OUT", help="Packed files, then the file to make.")],
    weights: Annotated[str, typer.Option("--weights", help='One for each file: "0.7,0.3".')],
    by: Annotated[By, typer.Option("--by", help="What the weights are of.")] = By.tokens,
    num_tokens: Annotated[int | None, typer.Option("--num_tokens", help="End at so many tokens.")] = None,
    epochs: Annotated[
        int | None, typer.Option("--epochs", help="Or when every file was read so often. Default: once.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Another seed is another order.")] = 0,
    memory_mib: Annotated[
        int, typer.Option("--memory_mib", help="Memory to stay below while shuffling; the result does not change.")
    ] = 512,
    overwrite: Overwrite = False,
) -> Path:
    """Mix whole documents of packed files so that each file has its share in every beginning of the result."""
    with reported(NOT_MADE), progress_bar("mix", "tokens") as progress:
        from modlib.data.rewriting.mix import mix

        header, mixed = mix(
            files[:-1],
            files[-1],
            weights=parse_weights(weights),
            unit=by.value,
            num_tokens=num_tokens,
            epochs=epochs,
            seed=seed,
            memory_mib=memory_mib,
            overwrite=overwrite,
            progress=progress,
        )
    total = max(1, header.num_tokens if by is By.tokens else header.num_documents)
    rows = []
    for one in mixed:
        share = format_percent((one.tokens if by is By.tokens else one.documents) / total)
        counts = [f"{one.documents:,}", f"{one.tokens:,}", share, f"{one.epochs:.3f}"]
        rows.append([str(one.path), format_percent(one.share), *counts])
    print_table(["file", "weight", "documents", "tokens", f"share of {by.value}", "epochs"], rows)
    print_made(files[-1], header)
    return files[-1]


def parse_weights(text: str) -> list[float]:
    """`0.7,0.3` as a list.

    Raises:
        ConfigError: It is not written like this.
    """
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(f"weights ('{text}') must be comma-separated numbers, such as 0.7,0.3; correct it") from None
