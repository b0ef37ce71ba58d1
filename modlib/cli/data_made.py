"""What the commands that make a packed file have in common on the command line."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from modlib.data.packed_header import PackedHeader

NOT_MADE = "the output was not made; one that was there before is as it was"
"""What is true when Ctrl-C ends such a command."""

Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")]


def print_made(path: Path, header: PackedHeader, more: str = "") -> None:
    """One line about a file that was made."""
    print(
        f"{path}: {header.num_documents:,} documents, {header.num_tokens:,} tokens of {header.token_width} bytes, "
        f"SHA-256 {header.sha256[:12]}{more}"
    )
