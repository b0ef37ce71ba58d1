"""`modlib data`: the commands that make and look at data."""

from __future__ import annotations

import typer

from modlib.cli.lazy import LazyCommands

# name: (module with a function `command`, what the help says). To add a command, add a line.
COMMANDS = {
    "batch": ("modlib.cli.data_batch", "Show what a run trained on in one step."),
    "chunk": ("modlib.cli.data_chunk", "Cut a packed file into several."),
    "convert": ("modlib.cli.data_convert", "Read and write the token files of other libraries."),
    "corpus": ("modlib.cli.data_corpus", "Make text offline, for tests and tutorials."),
    "decode": ("modlib.cli.data_decode", "Print the text of a document, a window or a range of tokens."),
    "filter": ("modlib.cli.data_filter", "Keep the documents that a function of yours keeps."),
    "index": ("modlib.cli.data_index", "Find the lines of a JSONL file."),
    "inspect": ("modlib.cli.data_inspect", "Show what a packed file says of itself, or the tokens of a part of it."),
    "merge": ("modlib.cli.data_merge", "Write several packed files into one."),
    "pack": ("modlib.cli.data_pack", "Tokenize text into a packed file."),
    "shuffle": ("modlib.cli.data_shuffle", "Shuffle documents or blocks, in bounded memory."),
    "stats": ("modlib.cli.data_stats", "Count documents, tokens, lengths, frequent tokens and duplicates."),
    "verify": ("modlib.cli.data_verify", "Read a packed file and check everything in it."),
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
