"""`modlib data`: the commands that make and look at data."""

from __future__ import annotations

import typer

from modlib.cli.lazy import LazyCommands

# name: (module with a function `command`, what the help says). To add a command, add a line.
COMMANDS = {
    "corpus": ("modlib.cli.data_corpus", "Make text offline, for tests and tutorials."),
    "index": ("modlib.cli.data_index", "Find the lines of a JSONL file."),
    "pack": ("modlib.cli.data_pack", "Tokenize text into a packed file."),
}


class DataCommands(LazyCommands):
    """The commands of the table."""

    table = COMMANDS


app = typer.Typer(
    cls=DataCommands,
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Make and look at data: from raw text to packed files.",
)


@app.callback()
def _no_options() -> None:
    pass
