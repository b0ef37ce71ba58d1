"""Arguments and options that several commands have: each is named, typed and explained once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from modlib.cli.completion import complete_config, complete_gin_file, complete_run, complete_sweep

RUNS = Path("runs")
"""Where run folders are, unless --runs_dir says otherwise."""

RunArgument = Annotated[
    str,
    typer.Argument(metavar="RUN", help="A run's name, the beginning of it, or its path.", autocompletion=complete_run),
]
RunArguments = Annotated[
    list[str],
    typer.Argument(metavar="RUN...", help="Names, beginnings of names, or paths.", autocompletion=complete_run),
]
SweepArgument = Annotated[
    str,
    typer.Argument(
        metavar="SWEEP", help="A sweep's name, the beginning of it, or its path.", autocompletion=complete_sweep
    ),
]
RunsDir = Annotated[Path, typer.Option("--runs_dir", help="Where run folders live.")]
Step = Annotated[int | None, typer.Option("--step", help="Step of the checkpoint. Default: the newest undamaged one.")]
GinFiles = Annotated[
    list[str] | None,
    typer.Option(
        "--gin_file", help="Gin file, by name or path; repeatable, later wins.", autocompletion=complete_gin_file
    ),
]
GinParams = Annotated[
    list[str] | None, typer.Option("--gin_param", help='One binding, e.g. "LR=1e-4"; repeatable, wins over files.')
]
Json = Annotated[bool, typer.Option("--json", help="JSON on stdout.")]


def config_argument(metavar: str) -> Any:
    """An argument that means a configuration; `metavar` is what the help calls it."""
    return typer.Argument(
        metavar=metavar,
        help="A run, or a gin file; or several joined by +, of which later ones win.",
        autocompletion=complete_config,
    )
