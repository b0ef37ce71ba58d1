"""Where do relative paths of a run's configuration lead from? From the folder that it was started in."""

from __future__ import annotations

import ast
import contextlib
from collections.abc import Iterator
from pathlib import Path

from modlib.config.diff import recorded
from modlib.runtime.run_folder import RunFolder


def working_directory(run: RunFolder) -> Path:
    """The folder that run.json names, in which the run last trained.

    This process's own folder, where that one is gone, or where a file of the configuration is here and not there: the
    whole project was moved or copied then.
    """
    here, named = Path.cwd(), run.read().get("working_directory")
    if not isinstance(named, str) or not Path(named).is_dir():
        return here
    there = Path(named)
    moved = any((here / path).exists() and not (there / path).exists() for path in _paths(run))
    return here if moved else there


def _paths(run: RunFolder) -> Iterator[str]:
    """The paths that the run's configuration names, as provenance.json has them: no component is imported for it."""
    record = recorded(run.path) if run.config_path.is_file() else None
    for name, one in ({} if record is None else record["parameters"]).items():
        if "path" in name.rpartition(".")[2] and isinstance(one.get("value"), str):
            with contextlib.suppress(ValueError, SyntaxError):
                if isinstance(value := ast.literal_eval(one["value"]), str):
                    yield value


@contextlib.contextmanager
def in_working_directory(run: RunFolder) -> Iterator[None]:
    """Be in the folder that relative paths of a run lead from; the process's one folder, so not for threads."""
    with contextlib.chdir(working_directory(run)):
        yield
