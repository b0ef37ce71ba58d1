"""The commands around a run, for tests: called in this process, and what they printed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from click.testing import Result
from typer.testing import CliRunner

from modlib.cli.main import app


def modlib(*words: str | Path, code: int = 0) -> Result:
    """Call a command that must end with this exit code."""
    done: Any = CliRunner().invoke(app, [*map(str, words)])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exc_info
    assert done.exit_code == code, done.output
    return done
