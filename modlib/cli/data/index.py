"""`modlib data index`: where the lines of a JSONL file lie."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from modlib.cli.data.made import NOT_MADE
from modlib.cli.progress_bar import progress_bar
from modlib.cli.report import reported
from modlib.cli.table import print_table
from modlib.runtime.errors import ConfigError
from modlib.runtime.units import format_bytes


def command(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A JSONL file, not compressed.")],
    out: Annotated[Path | None, typer.Argument(metavar="[OUT]", help="Default: FILE.index.")] = None,
    come_from: Annotated[
        str | None, typer.Option("--from", help="modalities: keep the lines of FILE.idx, a pickle that is not run.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing index.")] = False,
) -> Path:
    """Write the byte offset and length of every line that is not blank."""
    with reported(NOT_MADE):
        from modlib.data.foreign.modalities_file import read_modalities_index
        from modlib.data.packed.outputs import require_not_read
        from modlib.data.text.line_index import write_index

        if come_from not in (None, "modalities"):
            raise ConfigError(f"--from ({come_from}) must be modalities; leave it out to find the lines")
        if come_from is not None and out is not None:
            require_not_read([out], [file.with_suffix(".idx")])
        known = None if come_from is None else read_modalities_index(file.with_suffix(".idx"))
        with progress_bar(f"indexing {file.name}") as update:
            index = write_index(
                file, out, known=known, overwrite=overwrite, progress=lambda done: update(done, file.stat().st_size, "")
            )
    lengths = index.lengths
    longest = int(lengths.max()) if len(lengths) else 0
    row = [str(index.index_path), f"{len(index):,}", f"{index.num_lines:,}", format_bytes(int(lengths.sum()))]
    print_table(["index", "rows", "lines", "bytes", "longest"], [[*row, format_bytes(longest)]])
    return index.index_path
