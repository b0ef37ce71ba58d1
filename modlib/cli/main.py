"""`modlib`: the commands around a run. A command's module is imported when it is used, not to print the help."""

from __future__ import annotations

import typer

import modlib
from modlib.cli.lazy import LazyCommands

# name: (module with a function `command` or a typer app `app`, what the help says). To add a command, add a line.
COMMANDS = {
    "cancel": ("modlib.cli.cancel", "Stop runs; they save first."),
    "data": ("modlib.cli.data", "Make and look at data: from raw text to packed files."),
    "diff": ("modlib.cli.diff", "Compare two configurations by what they mean."),
    "export": ("modlib.cli.export", "Write a trained model as a HuggingFace folder."),
    "follow": ("modlib.cli.follow", "Watch a run until it ends."),
    "generate": ("modlib.cli.generate", "Let a trained model write."),
    "list": ("modlib.cli.list", "List the components that a gin file can choose."),
    "logs": ("modlib.cli.logs", "Print a rank's log."),
    "ls": ("modlib.cli.ls", "List the runs: state, step, ETA, loss, host."),
    "plot": ("modlib.cli.plot", "Draw metrics of runs as curves."),
    "queue": ("modlib.cli.queue", "List my SLURM jobs, with their runs and why they wait."),
    "reproduce": ("modlib.cli.reproduce", "Run a run again from its folder alone, and compare."),
    "resume": ("modlib.cli.resume", "Start a run again where it stopped, as it was started."),
    "show": ("modlib.cli.show", "Show every value of a configuration, and where it was set."),
    "status": ("modlib.cli.status", "Say what runs are doing, and why."),
    "sweep": ("modlib.cli.sweep", "Show what came out of a sweep, and its best point."),
    "verify": ("modlib.cli.verify", "Compare runs with what the papers say."),
}


class MainCommands(LazyCommands):
    """The commands of the table."""

    table = COMMANDS


app = typer.Typer(
    name="modlib",
    cls=MainCommands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Look at components, configurations, data and runs of modlib.",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(modlib.__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: bool = typer.Option(False, "--version", callback=_print_version, is_eager=True, help="Print the version."),
) -> None:
    pass


def main() -> None:
    """Entry point of the console command `modlib`."""
    app()
