"""`modlib diff`: what differs between two configurations, by meaning."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from modlib.cli.report import reported
from modlib.cli.runs import RunsDir, run_folders
from modlib.cli.table import print_table


def command(
    a: Annotated[str, typer.Argument(metavar="A", help="A gin file, by name or path, or a run, by name or path.")],
    b: Annotated[str, typer.Argument(metavar="B", help="Another.")],
    runs_dir: RunsDir = Path("runs"),
    as_json: Annotated[bool, typer.Option("--json", help="JSON on stdout.")] = False,
) -> None:
    """Compare two configurations by what they mean; exit code 0 when they agree, 1 when they differ."""
    with reported():
        from modlib.config import diff

        differences = diff(*(_run_or_file(word, runs_dir) for word in (a, b)))
    if as_json:
        print(json.dumps([one._asdict() for one in differences], indent=1, ensure_ascii=False))
    elif differences:
        rows = [[one.name, one.a_value, one.b_value, f"{one.a_origin}; {one.b_origin}"] for one in differences]
        print_table(["parameter", "A", "B", "set at (A; B)"], rows)
    else:
        print("the two configurations mean the same", file=sys.stderr)
    raise typer.Exit(1 if differences else 0)


def _run_or_file(word: str, runs_dir: Path) -> str:
    """The folder of the run of this name, where no file or folder here has it; else the word."""
    run = None if Path(word).exists() else run_folders(runs_dir).get(word.rstrip("/"))
    return word if run is None else str(run.path)
