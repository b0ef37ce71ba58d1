"""`modlib diff`: what differs between two configurations, by meaning."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from modlib.cli.configs.named import gin_files, sources
from modlib.cli.options import RUNS, Json, RunsDir, config_argument
from modlib.cli.report import reported
from modlib.cli.table import print_table

if TYPE_CHECKING:
    from modlib.config import Config


def command(
    a: Annotated[str, config_argument("A")],
    b: Annotated[str, config_argument("B")],
    runs_dir: RunsDir = RUNS,
    as_json: Json = False,
) -> None:
    """Compare two configurations by what they mean; exit code 0 when they agree, 1 when they differ."""
    with reported():
        from modlib.config import diff

        differences = diff(*(_configuration(sources(word, runs_dir)) for word in (a, b)))
    if as_json:
        print(json.dumps([one._asdict() for one in differences], indent=1, ensure_ascii=False))
    elif differences:
        rows = [[one.name, one.a_value, one.b_value, f"{one.a_origin}; {one.b_origin}"] for one in differences]
        print_table(["parameter", "A", "B", "set at (A; B)"], rows)
    else:
        print("the two configurations mean the same", file=sys.stderr)
    raise typer.Exit(1 if differences else 0)


def _configuration(found: list[str]) -> str | Config:
    """What is compared: several files together are one configuration."""
    from modlib.config import load

    return found[0] if len(found) == 1 else load(gin_files(found))
