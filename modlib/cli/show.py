"""`modlib show`: every value of a configuration, and where it was set."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from modlib.cli.report import reported
from modlib.cli.table import print_table


def command(
    config: Annotated[str, typer.Argument(metavar="FILE_OR_RUN", help="A gin file, by name or path, or a run folder.")],
    gin_param: Annotated[
        list[str] | None, typer.Option("--gin_param", help='One binding, e.g. "AdamW.lr=1e-4"; repeatable.')
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON on stdout.")] = False,
) -> None:
    """Show every value of a configuration, defaults included, and where it was set."""
    with reported():
        record = describe(config, gin_param or [])
    if as_json:
        print(json.dumps(record, indent=1, ensure_ascii=False))
        return
    rows = []
    for name, parameter in record["parameters"].items():
        origin = " -> ".join(parameter["origins"]) or "default"
        before = "".join(f", was {value}" for _, value in parameter["overridden"][-1:])
        rows.append([name, parameter["value"], origin + before])
    print_table(["parameter", "value", "set at"], rows, title=f"{config}  {record['hash'][:8]}")


def describe(config: str, gin_params: list[str]) -> dict[str, Any]:
    """The record of a gin file with parameters, or what a run folder says about itself."""
    from modlib.config import load
    from modlib.config.diff import recorded

    record = None if gin_params else recorded(config)
    if record is not None:
        return record
    path = Path(config)
    return load([path / "config.gin" if path.is_dir() else config], gin_params).record()
