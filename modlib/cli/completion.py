"""What the shell's completion offers: runs, sweeps, gin files. It must be quick, so nothing here imports torch."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import typer


def complete_run(ctx: typer.Context, incomplete: str) -> list[str]:
    """Runs of --runs_dir that begin so."""
    from modlib.cli.watch.runs import run_folders

    return _beginning(incomplete, run_folders(_runs_dir(ctx)))


def complete_sweep(ctx: typer.Context, incomplete: str) -> list[str]:
    """Sweeps of --runs_dir that begin so."""
    from modlib.cli.watch.runs import sweep_folders

    return _beginning(incomplete, sweep_folders(_runs_dir(ctx)))


def complete_gin_file(incomplete: str) -> list[str]:
    """Gin files of a run that begin so: modlib's own, and those in the working directory."""
    from modlib.config.files import packaged_names

    return _beginning(incomplete, [*(name for name in packaged_names() if not _is_for_data(name)), *_here()])


def complete_data_gin_file(incomplete: str) -> list[str]:
    """Gin files that begin so, of the commands that make data."""
    from modlib.config.files import packaged_names

    return _beginning(incomplete, [*filter(_is_for_data, packaged_names()), *_here()])


def complete_config(ctx: typer.Context, incomplete: str) -> list[str]:
    """Runs and gin files that begin so; after a "+", what may come there."""
    before, plus, last = incomplete.rpartition("+")
    return [f"{before}{plus}{name}" for name in [*complete_run(ctx, last), *complete_gin_file(last)]]


def _beginning(incomplete: str, names: Iterable[str]) -> list[str]:
    return [name for name in names if name.startswith(incomplete)]


def _runs_dir(ctx: typer.Context) -> Path:
    return Path(ctx.params.get("runs_dir") or "runs")


def _here() -> list[str]:
    return sorted(path.name for path in Path().glob("*.gin"))


def _is_for_data(name: str) -> bool:
    return "commands" in Path(name).parts
