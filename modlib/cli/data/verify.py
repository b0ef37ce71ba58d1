"""`modlib data verify`: everything in a packed file is checked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from modlib.cli.progress_bar import progress_bar
from modlib.cli.report import reported
from modlib.runtime.errors import EXIT_CONFIG, EXIT_DATA
from modlib.runtime.units import counted


def command(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Packed token files.")],
    as_json: Annotated[bool, typer.Option("--json", help="JSON on stdout, one line a file.")] = False,
) -> None:
    """Check header, sizes, SHA-256, document offsets and every id; what is wrong is said with its place."""
    from modlib.data.inspecting.verify import verify

    failures = set()
    for file in files:
        try:
            with reported(), progress_bar(f"verify {file.name}") as progress:
                found = verify(file, progress)
        except typer.Exit as stop:
            if stop.exit_code not in (EXIT_DATA, EXIT_CONFIG):
                raise
            failures.add(stop.exit_code)  # and the other files are checked all the same
            continue
        packed = found.packed
        record = {
            "path": str(file),
            "documents": packed.num_documents,
            "tokens": packed.num_tokens,
            "empty_documents": found.num_empty,
            "documents_without_end_token": found.num_without_end,
            "sha256": packed.sha256,
        }
        if as_json:
            print(json.dumps(record))
            continue
        notes = [f"{counted(found.num_empty, 'empty document')}"] if found.num_empty else []
        if found.num_without_end:
            notes.append(
                f"{found.num_without_end:,} documents do not end with token {packed.header.end_of_document_id}"
            )
        print(
            f"{file}: good, {counted(packed.num_documents, 'document')}, {counted(packed.num_tokens, 'token')}, "
            f"ids below {packed.vocab_size:,}, SHA-256 {packed.sha256[:12]}" + "".join(f"; {note}" for note in notes)
        )
    if failures:
        raise typer.Exit(max(failures))  # damaged data counts more than a file that is not there
