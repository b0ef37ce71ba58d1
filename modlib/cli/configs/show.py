"""`modlib show`: every value of a configuration, and where it was set."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from modlib.cli.configs.named import ARGUMENT, gin_files, sources
from modlib.cli.options import RUNS, GinFiles, GinParams, Json, RunsDir, config_argument
from modlib.cli.report import reported
from modlib.cli.table import print_table
from modlib.config.hashing import digits_of


def command(
    config: Annotated[str | None, config_argument(f"[{ARGUMENT}]")] = None,
    gin_file: GinFiles = None,
    gin_param: GinParams = None,
    runs_dir: RunsDir = RUNS,
    as_json: Json = False,
) -> None:
    """Show every value of a configuration, defaults included, and where it was set."""
    with reported():
        if not (config or gin_file):
            raise typer.BadParameter("give a run or a gin file, as in: modlib show quickstart.gin")
        found = [*(sources(config, runs_dir) if config else []), *(gin_file or [])]
        record = describe(found, gin_param or [])
    if as_json:
        print(json.dumps(record, indent=1, ensure_ascii=False))
        return
    rows = []
    for name, parameter in record["parameters"].items():
        origin = " -> ".join(parameter["origins"]) or "default"
        before = "".join(f", was {value}" for _, value in parameter["overridden"][-1:])
        rows.append([name, parameter["value"], origin + before])
    print_table(["parameter", "value", "set at"], rows, title=f"{' + '.join(found)}  {digits_of(record['hash'])[:8]}")


def describe(found: list[str], gin_params: list[str]) -> dict[str, Any]:
    """The record of gin files with parameters, or what a run folder says about itself."""
    from modlib.config import load
    from modlib.config.diff import recorded

    record = recorded(found[0]) if len(found) == 1 and not gin_params else None
    return load(gin_files(found), gin_params).record() if record is None else record
