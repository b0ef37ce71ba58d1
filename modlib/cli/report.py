"""Errors as a user reads them: one clean block on stderr, and the exit code of their class."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from textwrap import indent

import typer

from modlib.runtime.errors import EXIT_INTERRUPTED, ConfigError, ModlibError


def error_text(error: ModlibError) -> str:
    """The block printed for an error: its class in words, then its text or its list of problems."""
    if isinstance(error, ConfigError):
        count = len(error.problems)
        head = "config error" if count == 1 else f"{count} config errors"
        return "\n".join([f"{head}; nothing was started", *(indent(problem, "  ") for problem in error.problems)])
    return indent(f"{type(error).__name__}: {error}", "  ")[2:]


@contextmanager
def reported(interrupted: str | Callable[[], str] = "nothing more was done") -> Iterator[None]:
    """Turn a ModlibError into its text on stderr and its exit code; anything else keeps its traceback.

    Args:
        interrupted: What is true when Ctrl-C ends it; completes "interrupted; ...". A function is asked then.
    """
    try:
        yield
    except ModlibError as error:
        print(error_text(error), file=sys.stderr, flush=True)
        raise typer.Exit(error.exit_code) from None
    except KeyboardInterrupt:
        print(
            f"interrupted; {interrupted if isinstance(interrupted, str) else interrupted()}",
            file=sys.stderr,
            flush=True,
        )
        raise typer.Exit(EXIT_INTERRUPTED) from None
