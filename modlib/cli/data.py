"""`modlib data`: commands on packed token files. A command's module is imported when it is used."""

from __future__ import annotations

import typer

from modlib.cli.main import LazyCommands

# name: (module with a function `command`, what the help says). To add a command, add a line.
COMMANDS = {
    "convert": ("modlib.cli.data_convert", "Read and write the token files of other libraries."),
    "decode": ("modlib.cli.data_decode", "Print the text of a document, a window or a range of tokens."),
    "inspect": ("modlib.cli.data_inspect", "Show what a packed file says of itself, or the tokens of a part of it."),
    "merge": ("modlib.cli.data_merge", "Write several packed files into one."),
    "verify": ("modlib.cli.data_verify", "Read a packed file and check everything in it."),
}


class DataCommands(LazyCommands):
    """The commands of the table."""

    table = COMMANDS


app = typer.Typer(
    name="data",
    cls=DataCommands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Make, check and look at packed token files.",
)


@app.callback()
def _group() -> None:
    pass
