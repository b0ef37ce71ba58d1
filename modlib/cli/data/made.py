"""What the commands that make a packed file have in common on the command line."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from modlib.runtime.units import counted

if TYPE_CHECKING:
    from modlib.data.packed.header import PackedHeader

NOT_MADE = "the output was not made; one that was there before is as it was"
"""What is true when Ctrl-C ends such a command."""

Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")]


def print_made(path: Path, header: PackedHeader, more: str = "") -> None:
    """One line about a file that was made."""
    print(
        f"{path}: {counted(header.num_documents, 'document')}, {counted(header.num_tokens, 'token')} of "
        f"{counted(header.token_width, 'byte')}, "
        f"SHA-256 {header.sha256[:12]}{more}"
    )
