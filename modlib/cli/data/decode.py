"""`modlib data decode`: the text of a part of a packed file."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from modlib.cli.data.selection import (
    Document,
    File,
    Range,
    SeqLen,
    TokenizerPath,
    Window,
    chosen,
)
from modlib.cli.report import reported


def command(
    file: File,
    document: Document = None,
    window: Window = None,
    seq_len: SeqLen = None,
    span: Range = None,
    tokenizer: TokenizerPath = None,
    skip_special: Annotated[
        bool, typer.Option("--skip_special", help="Leave special tokens out, such as the end of a document.")
    ] = False,
    mark_trained: Annotated[
        bool, typer.Option("--mark_trained", help="Put what the loss mask lets count in \u27e6 \u27e7.")
    ] = False,
) -> None:
    """Print the text of a document, of a training window, or of a range of tokens; nothing else is on stdout."""
    with reported():
        from modlib.data.inspecting.text import decode

        choice = chosen(document, window, seq_len, span)
        text = decode(file, **choice, tokenizer=tokenizer, skip_special_tokens=skip_special, mark_trained=mark_trained)
    sys.stdout.write(text if text.endswith("\n") else text + "\n")
