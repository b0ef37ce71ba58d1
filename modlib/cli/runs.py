"""Runs by name: where they are, which one is meant, what they are doing."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated

import typer

from modlib.config.suggestions import similar
from modlib.launching.run_state import OVER, RunState, executor_of, job_ids_of, run_state
from modlib.launching.scheduler import job_states
from modlib.runtime.errors import RunFolderError
from modlib.runtime.run_folder import RunFolder

MOST_SUGGESTIONS = 5
COLOURS = {
    "created": "dim",
    "queued": "yellow",
    "running": "green",
    "stopped": "cyan",
    "finished": "blue",
    "failed": "red",
    "cancelled": "magenta",
    "died": "red",
}


def complete_run(incomplete: str) -> list[str]:
    """Runs in runs/ that begin so, for the shell's completion."""
    return [name for name in run_folders(Path("runs")) if name.startswith(incomplete)]


RunArgument = Annotated[
    str,
    typer.Argument(metavar="RUN", help="A run's name, the beginning of it, or its path.", autocompletion=complete_run),
]
RunsDir = Annotated[Path, typer.Option("--runs_dir", help="Where run folders live.")]


def run_folders(runs_dir: Path) -> dict[str, RunFolder]:
    """The runs in a folder by name, and the points of its sweeps by `<sweep>/<point>`."""
    found: dict[str, RunFolder] = {}
    for path in _folders(runs_dir):
        if is_run(path):
            found[path.name] = RunFolder(path)
        else:
            found |= {f"{path.name}/{point.name}": RunFolder(point) for point in _folders(path) if is_run(point)}
    return found


def is_run(path: Path) -> bool:
    """Whether a folder was made for a run, whatever is left of it."""
    return any((path / name).exists() for name in ("run.json", "config.gin", "attempts"))


def find_run(word: str, runs_dir: Path) -> RunFolder:
    """The run that a word means: a path, a name, or the beginning of one name alone.

    Raises:
        RunFolderError: It means none, or several.
    """
    path = Path(word)
    if path.is_dir() and is_run(path):
        return RunFolder(path.resolve() if path.name in ("", "..") else path)
    known = run_folders(runs_dir)
    meant = meant_by(word, known)
    if len(meant) == 1:
        return known[meant[0]]
    if meant:
        raise RunFolderError(f"RUN ({word}) must mean one run, and may mean {_listed(meant)}; write more of the name")
    hint = _hint(word, known, runs_dir)
    raise RunFolderError(f"RUN ({word}) must be a run in {runs_dir}/ or the path of one; {hint}")


def meant_by(word: str, known: Iterable[str]) -> list[str]:
    """The names of runs that a word may mean: the one name, else points of sweeps named so, else all that begin so."""
    name, known = word.rstrip("/"), list(known)
    if name in known:
        return [name]
    points = [key for key in known if key.rpartition("/")[2] == name]
    return points or [
        key for key in known if name and (key.startswith(name) or key.rpartition("/")[2].startswith(name))
    ]


def states_of(runs: Iterable[RunFolder]) -> list[RunState]:
    """What runs are doing; SLURM is asked once for all of them, and only when one of them may have a job there."""
    runs = list(runs)
    asked: list[str] = []
    worth_accounting: set[str] = set()
    for run in runs:
        record = run.read()
        job_ids = job_ids_of(record) if record.get("status") != "finished" else ()
        asked += job_ids
        if record.get("status") not in OVER:
            worth_accounting.update(job_ids[-1:])
    jobs = job_states(asked, worth_accounting) if asked else {}
    return [run_state(run, jobs) for run in runs]


def silent_scheduler(states: Iterable[RunState]) -> str:
    """What to add where runs have jobs that SLURM says nothing of; "" otherwise."""
    silent = [one for one in states if one.executor == "slurm" and one.job_ids and one.job is None]
    if not [one for one in silent if one.state != "finished"]:
        return ""
    return "SLURM does not answer here: what is said of its jobs is from the run folders alone"


def executor(run: RunFolder) -> str:
    """ "local" or "slurm": how a run was last started."""
    return executor_of(run.read())


def _folders(path: Path) -> Iterator[Path]:
    try:
        with os.scandir(path) as entries:
            names = sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return
    yield from (path / name for name in names)


def _hint(name: str, known: dict[str, RunFolder], runs_dir: Path) -> str:
    close = similar(name, known)
    if close:
        return f"did you mean {' or '.join(close)}?"
    if not runs_dir.is_dir():
        return f"there is no folder {runs_dir.absolute()}: give the right one with --runs_dir"
    return f"the runs there: {_listed(known)}" if known else f"there are no runs in {runs_dir.absolute()}"


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - MOST_SUGGESTIONS} more" if len(names) > MOST_SUGGESTIONS else ""
    return ", ".join(names[:MOST_SUGGESTIONS]) + more
