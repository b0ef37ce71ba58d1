"""`modlib data filter`: the documents that a function of the user's keeps."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from modlib.cli.data.made import NOT_MADE, Overwrite, print_made
from modlib.cli.data.selection import TokenizerPath
from modlib.cli.progress_bar import progress_bar
from modlib.cli.report import reported
from modlib.runtime.errors import ConfigError
from modlib.runtime.units import counted


def command(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A packed token file.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The file to make.")],
    keep: Annotated[
        str, typer.Option("--keep", metavar="MODULE:FUNCTION", help="Gets a document, returns whether it is kept.")
    ],
    tokenizer: TokenizerPath = None,
    overwrite: Overwrite = False,
) -> Path:
    """Write the documents for which a function returns True.

    The function is given a document with .tokens (the ids), .text and .number. Its module is looked for on Python's
    path and in the working directory, and is run: it is a program of yours.
    """
    with (
        reported(NOT_MADE),
        progress_bar(f"filter {file.name}", "tokens") as progress,
        contextlib.redirect_stdout(sys.stderr),
    ):
        from modlib.data.corpora.corpus import open_packed
        from modlib.data.rewriting.filter import filter_documents

        function = _function(keep)
        before = open_packed(file).num_documents
        header = filter_documents(
            file, out, function, tokenizer=tokenizer, name=keep, overwrite=overwrite, progress=progress
        )
    print_made(out, header, f"; {before - header.num_documents:,} of {counted(before, 'document')} left out")
    return out


def _function(name: str) -> Callable[[Any], bool]:
    """What module:function names.

    Raises:
        ConfigError: There is no such module or function.
    """
    from modlib.config.imports import ImportProblem, import_user_module

    module, colon, attribute = name.partition(":")
    if not (module and colon and attribute):
        raise ConfigError(f"--keep ({name}) must be MODULE:FUNCTION, such as my_filters:is_long; write both")
    try:
        import_user_module(module, [Path.cwd()])
    except ImportProblem as error:
        raise ConfigError(f"--keep ({name}): {error}") from None
    found: Any = sys.modules[module]
    for part in attribute.split("."):
        found = getattr(found, part, None)
    if not callable(found):
        raise ConfigError(f"--keep ({name}) must name a function of {module}; there is no function {attribute} in it")
    return found  # type: ignore[no-any-return]
