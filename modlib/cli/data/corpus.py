"""`modlib data corpus`: text without a download."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from modlib.cli.data.made import NOT_MADE
from modlib.cli.progress_bar import progress_bar
from modlib.cli.report import reported
from modlib.cli.table import print_table
from modlib.runtime.units import format_bytes


class Kind(StrEnum):
    """What there is."""

    stdlib = "stdlib"
    markov = "markov"
    arithmetic = "arithmetic"
    copy = "copy"


def command(
    kind: Annotated[Kind, typer.Argument(help="stdlib: sources of Python's library; the others are made by rules.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A JSONL file to write.")],
    documents: Annotated[int, typer.Option("--documents", help="How many; stdlib has what it has.")] = 1000,
    length: Annotated[int, typer.Option("--length", help="Characters of each, about.")] = 1000,
    seed: Annotated[int, typer.Option("--seed", help="The same seed makes the same text.")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing file.")] = False,
) -> Path:
    """Write text as JSONL: {"text": ...} a line."""
    with reported(NOT_MADE), progress_bar(f"corpus {kind.value}", "documents") as progress:
        from modlib.data.corpora.corpus_file import write_corpus

        made = write_corpus(
            kind.value, out, documents=documents, length=length, seed=seed, overwrite=overwrite, progress=progress
        )
    row = [str(out), f"{made.documents:,}", format_bytes(made.num_bytes_of_text)]
    print_table(["file", "documents", "text"], [row])
    bits = made.bits_per_character
    best = "" if bits is None else f"; no model does better than {bits:.4f} bits per character in the long run"
    print(f"{made.about}{best}", file=sys.stderr)
    return out
