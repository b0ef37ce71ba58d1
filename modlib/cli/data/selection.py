"""Options that choose a part of a packed file: the same for every command that shows one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from modlib.runtime.errors import ConfigError
from modlib.runtime.units import counted, format_percent

File = Annotated[str, typer.Argument(metavar="FILE", help='A packed token file, or a corpus such as "stdlib:train".')]
Document = Annotated[int | None, typer.Option("--document", help="Number of a document; the first is 0.")]
Window = Annotated[int | None, typer.Option("--window", help="Number of a training window; goes with --seq_len.")]
SeqLen = Annotated[int | None, typer.Option("--seq_len", help="Inputs per window.")]
Range = Annotated[str | None, typer.Option("--range", metavar="A:B", help="Tokens A to B - 1 of the file.")]
TokenizerPath = Annotated[
    Path | None, typer.Option("--tokenizer", help="A tokenizer, where none lies beside the file.")
]


def chosen(document: int | None, window: int | None, seq_len: int | None, span: str | None) -> dict[str, Any]:
    """The options as `part_of` takes them.

    Raises:
        ConfigError: --range is not A:B.
    """
    return {"document": document, "window": window, "seq_len": seq_len, "span": None if span is None else _span(span)}


def _span(text: str) -> tuple[int, int]:
    first, colon, last = text.partition(":")
    try:
        if colon:
            return int(first), int(last)
    except ValueError:
        pass
    raise ConfigError(f"--range ({text}) must be two numbers A:B, such as 100:200; tokens A to B - 1 are shown")


def trained_share(trained: int, tokens: int) -> str:
    """How many tokens a loss mask lets count, for people."""
    return f"{counted(trained, 'token')} ({format_percent(trained / max(tokens, 1))})"
