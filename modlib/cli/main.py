"""`modlib`: the commands around a run. A command's module is imported when it is used, not to print the help."""

from __future__ import annotations

import typer

from modlib.cli.lazy import SETTINGS, LazyCommands
from modlib.runtime.streams import print_anything, secure_streams
from modlib.version import VERSION

# name: (module with a function `command` or a typer app `app`, what the help says). To add a command, add a line.
COMMANDS = {
    "cancel": ("modlib.cli.watch.cancel", "Stop runs; they save first."),
    "data": ("modlib.cli.data.commands", "Make and look at data: from raw text to packed files."),
    "diff": ("modlib.cli.configs.diff", "Compare two configurations by what they mean."),
    "export": ("modlib.cli.models.export", "Write a trained model as a HuggingFace folder."),
    "follow": ("modlib.cli.watch.follow", "Watch a run until it ends."),
    "generate": ("modlib.cli.models.generate", "Let a trained model write."),
    "import": ("modlib.cli.models.import_folder", "Make a model of modlib's own of a HuggingFace folder."),
    "list": ("modlib.cli.configs.list", "List the components that a gin file can choose."),
    "logs": ("modlib.cli.watch.logs", "Print a rank's log."),
    "ls": ("modlib.cli.watch.ls", "List the runs: state, step, ETA, loss, host."),
    "plot": ("modlib.cli.plot", "Draw metrics of runs as curves."),
    "queue": ("modlib.cli.watch.queue", "List my SLURM jobs, with their runs and why they wait."),
    "reproduce": ("modlib.cli.repeat.reproduce", "Run a run again from its folder alone, and compare."),
    "resume": ("modlib.cli.watch.resume", "Start a run again where it stopped, as it was started."),
    "show": ("modlib.cli.configs.show", "Show every value of a configuration, and where it was set."),
    "status": ("modlib.cli.watch.status", "Say what runs are doing, and why."),
    "sweep": ("modlib.cli.sweeps.results", "Show what came out of a sweep, and its best point."),
    "track": ("modlib.cli.watch.track", "Send W&B what it lacks of a run, or rebuild TensorBoard's files."),
    "train": ("modlib.cli.start.launch", "Train an experiment, here or on a cluster; the same as launch.py."),
    "verify": ("modlib.cli.repeat.verify", "Compare runs with what the papers say."),
}


class MainCommands(LazyCommands):
    """The commands of the table."""

    table = COMMANDS
    elsewhere = dict.fromkeys(("launch", "run"), "training is started with: modlib train --gin_file quickstart.gin")


app = typer.Typer(
    name="modlib",
    cls=MainCommands,
    context_settings=SETTINGS,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Look at components, configurations, data and runs of modlib.",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(VERSION)
        raise typer.Exit


@app.callback()
def _options(
    version: bool = typer.Option(  # noqa: ARG001  its callback answers
        False, "--version", callback=_print_version, is_eager=True, help="Print the version."
    ),
) -> None:
    print_anything()


def main() -> None:
    """Entry point of the console command `modlib`."""
    secure_streams()
    app()


if __name__ == "__main__":
    main()
