"""`modlib migrate`: a Modalities training config as a gin file."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from modlib.cli.data.made import Overwrite
from modlib.cli.report import reported
from modlib.runtime import durable
from modlib.runtime.errors import ConfigError
from modlib.runtime.units import counted


def command(
    source: Annotated[Path, typer.Argument(metavar="CONFIG.yaml", help="A training config of Modalities.")],
    out: Annotated[Path, typer.Argument(metavar="OUT.gin", help="The gin file to write.")],
    overwrite: Overwrite = False,
) -> None:
    """Write a gin file that trains as a Modalities config does; what is different is listed, with line and reason."""
    with reported():
        from modlib.migration.modalities import migrated

        if out.exists() and not overwrite:
            raise ConfigError(f"OUT ({out}) must be a new file; name another, or replace it with --overwrite")
        bindings = migrated(source)
        durable.atomic_write_text(out, bindings.text(source.name))
        for line, path, text in sorted(bindings.notes):
            print(f"line {line}, {path}: {text}", file=sys.stderr)
        count = len(bindings.parameters) + len(bindings.macros)
        print(f"{out}: {counted(count, 'value')}, {counted(len(bindings.notes), 'note')}; check it: "
              f"modlib train --gin_file {out} --dry_run")  # fmt: skip
