"""Errors as a user reads them: one clean block on stderr, and the exit code of their class."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from textwrap import indent
from typing import TYPE_CHECKING

import typer

from modlib.runtime.errors import EXIT_INTERRUPTED, ConfigError, ModlibError, StoppedEarly
from modlib.runtime.limits import as_limit
from modlib.runtime.secrets import mask
from modlib.runtime.units import counted

if TYPE_CHECKING:
    from modlib.runtime.run_folder import RunFolder


def error_text(error: ModlibError) -> str:
    """The block printed for an error: its class in words, then its text or its list of problems."""
    return mask(_error_text(error))


def _error_text(error: ModlibError) -> str:
    if isinstance(error, ConfigError):
        count = len(error.problems)
        head = "config error" if count == 1 else f"{count} config errors"
        return "\n".join([f"{head}; nothing was started", *(indent(problem, "  ") for problem in error.problems)])
    return indent(f"{type(error).__name__}: {error}", "  ")[2:]


def finished_text(run: RunFolder, step: int) -> str:
    """What is said of a run that has nothing left to do."""
    verb = "is" if step == 1 else "are"
    return f"run {run.name} is finished: {counted(step, 'step')} {verb} done and saved in {run.path}"


@contextmanager
def reported(interrupted: str | Callable[[], str] = "nothing more was done") -> Iterator[None]:
    """Turn a ModlibError into its text on stderr and its exit code; anything else keeps its traceback.

    Args:
        interrupted: What is true when a signal ends it; completes "interrupted; ...". A function is asked then.
    """
    try:
        yield
    except ModlibError as error:
        print(error_text(error), file=sys.stderr, flush=True)
        raise typer.Exit(error.exit_code) from None
    except (OSError, MemoryError, RuntimeError, ImportError) as error:
        if (met := as_limit(error)) is None:
            raise
        print(error_text(met), file=sys.stderr, flush=True)
        raise typer.Exit(met.exit_code) from None
    except (KeyboardInterrupt, StoppedEarly) as error:
        what, code = (error.signal, error.exit_code) if isinstance(error, StoppedEarly) else ("", EXIT_INTERRUPTED)
        kept = interrupted if isinstance(interrupted, str) else interrupted()
        print(f"{what or 'interrupted'}; {kept}", file=sys.stderr, flush=True)
        raise typer.Exit(code) from None
