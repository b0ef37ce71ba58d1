"""`modlib data`: the commands that make and look at data."""

from __future__ import annotations

from functools import partial
from typing import Any

import typer

from modlib.cli.lazy import LazyCommands, load_command

# name: (module with a function `command`, what the help says). To add a command, add a line.
COMMANDS = {
    "batch": ("modlib.cli.data.batch", "Show what a run trained on in one step."),
    "chunk": ("modlib.cli.data.chunk", "Cut a packed file into several."),
    "convert": ("modlib.cli.data.convert", "Read and write the token files of other libraries."),
    "corpus": ("modlib.cli.data.corpus", "Make text offline, for tests and tutorials."),
    "decode": ("modlib.cli.data.decode", "Print the text of a document, a window or a range of tokens."),
    "filter": ("modlib.cli.data.filter", "Keep documents for which your function returns true."),
    "index": ("modlib.cli.data.index", "Find the lines of a JSONL file."),
    "inspect": ("modlib.cli.data.inspect", "Show what a packed file says of itself, or the tokens of a part of it."),
    "merge": ("modlib.cli.data.merge", "Write several packed files into one."),
    "mix": ("modlib.cli.data.mix", "Mix packed files by weight into one."),
    "pack": ("modlib.cli.data.pack", "Tokenize text into a packed file."),
    "shuffle": ("modlib.cli.data.shuffle", "Shuffle documents or blocks, in bounded memory."),
    "stats": ("modlib.cli.data.stats", "Count documents, tokens, lengths, frequent tokens and duplicates."),
    "verify": ("modlib.cli.data.verify", "Read a packed file and check everything in it."),
}


MAKERS = ("chunk", "convert", "corpus", "filter", "index", "merge", "mix", "pack", "shuffle")
"""Those that make files; their functions return a path, and gin files configure them."""


class DataCommands(LazyCommands):
    """The commands of the table."""

    table = COMMANDS

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """As for any group; a command that makes files takes its parameters from gin files, too."""
        name, command, rest = super().resolve_command(ctx, args)
        if name in MAKERS:
            from modlib.cli.data.configured import configured

            optional = any(word.startswith(("--gin_", "--gin-")) for word in rest)
            wrap = partial(configured, name, optional=optional)
            command = load_command(name, *COMMANDS[name], wrap=wrap)
        return name, command, rest


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
