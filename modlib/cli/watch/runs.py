"""Runs and sweeps by name: where they are, which one is meant, what they are doing."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

from modlib.config.suggestions import similar
from modlib.launching.run_state import OVER, RunState, executor_of, job_ids_of, run_state
from modlib.launching.scheduler import job_states
from modlib.runtime.errors import RunFolderError
from modlib.runtime.run_folder import SWEEP_FILE, RunFolder

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


def sweep_folders(runs_dir: Path) -> dict[str, Path]:
    """The sweeps in a folder, by name."""
    return {path.name: path for path in _folders(runs_dir) if (path / SWEEP_FILE).is_file()}


def find_run(word: str, runs_dir: Path) -> RunFolder:
    """The run that a word means: a path, a name, or the beginning of one name alone.

    Raises:
        RunFolderError: It means none, or several.
    """
    path = Path(word)
    if path.is_dir() and is_run(path):
        return RunFolder(path.resolve() if path.name in ("", "..") else path)
    known = run_folders(runs_dir)
    return known[_the_one("run", word, known, runs_dir)]


def find_sweep(word: str, runs_dir: Path) -> Path:
    """The folder of the sweep that a word means: a path, a name, or the beginning of one name alone.

    Raises:
        RunFolderError: It means none, or several.
    """
    path = Path(os.path.normpath(word))
    if (path / SWEEP_FILE).is_file():
        return path.resolve() if path.name in ("", "..") else path
    known = sweep_folders(runs_dir)
    return known[_the_one("sweep", word, known, runs_dir)]


def _the_one(kind: str, word: str, known: Collection[str], runs_dir: Path) -> str:
    """The one name that a word means; `kind` is "run" or "sweep"."""
    meant = meant_by(word, known)
    if len(meant) == 1:
        return meant[0]
    if meant:
        raise RunFolderError(several(kind.upper(), word, kind, meant))
    hint = _hint_at(kind, word) or hint_for(kind, word, known, runs_dir)
    raise RunFolderError(f"{kind.upper()} ({word}) must be a {kind} in {runs_dir}/ or the path of one; {hint}")


def _hint_at(kind: str, word: str) -> str:
    """What a word that is a path may mean; "" where it looks like a name."""
    path, folders = Path(word), run_folders if kind == "run" else sweep_folders
    if word and path.is_dir():
        inside = folders(path)
        missing = "run.json, config.gin and attempts/" if kind == "run" else SWEEP_FILE
        there = f"; the {kind}s in it: {_listed(inside)}" if inside else ""
        return f"{path} is a folder without {missing}{there}"
    close = similar(path.name, folders(path.parent), 1) if "/" in word else []
    return f"did you mean {path.parent / close[0]}?" if close else ""


def several(argument: str, word: str, kind: str, meant: Collection[str]) -> str:
    """What to say of a word that may mean several."""
    return f"{argument} ({word}) must mean one {kind}, and may mean {_listed(meant)}; write more of the name"


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


def hint_for(kind: str, name: str, known: Collection[str], runs_dir: Path, others: Collection[str] = ()) -> str:
    """Names like the one that is not there, or those that are there.

    Args:
        kind: "run" or "sweep".
        name: What is not there.
        known: Names of the runs or sweeps.
        runs_dir: Where they are.
        others: Names of other things that may be meant.
    """
    if close := similar(name, [*known, *others]):
        return f"did you mean {' or '.join(close)}?"
    if not runs_dir.is_dir():
        return f"there is no folder {runs_dir.absolute()}: give the right one with --runs_dir"
    return f"the {kind}s there: {_listed(known)}" if known else f"there are no {kind}s in {runs_dir.absolute()}"


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - MOST_SUGGESTIONS} more" if len(names) > MOST_SUGGESTIONS else ""
    return ", ".join(names[:MOST_SUGGESTIONS]) + more
