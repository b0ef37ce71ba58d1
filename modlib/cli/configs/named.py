"""Which configuration a word means: a run, a gin file, or several of these joined by +."""

from __future__ import annotations

from pathlib import Path

from modlib.cli.watch.runs import hint_for, meant_by, run_folders, several
from modlib.runtime.errors import RunFolderError

ARGUMENT = "RUN_OR_FILE"


def sources(word: str, runs_dir: Path) -> list[str]:
    """What a word names: run folders, and gin files by name or path; later ones win.

    Raises:
        RunFolderError: A part of it is no gin file, and means no run or several.
    """
    parts = [word] if Path(word).exists() else word.split("+")
    return [_source(part, runs_dir) for part in parts]


def _source(word: str, runs_dir: Path) -> str:
    if Path(word).exists() or word.endswith(".gin"):
        return word
    known = run_folders(runs_dir)
    meant = meant_by(word, known)
    if len(meant) == 1:
        return str(known[meant[0]].path)
    if meant:
        raise RunFolderError(several(ARGUMENT, word, "run", meant))
    from modlib.config.files import packaged_names

    hint = hint_for("run", word, known, runs_dir, packaged_names())
    raise RunFolderError(f"{ARGUMENT} ({word}) must be a run in {runs_dir}/, the path of one, or a gin file; {hint}")


def gin_files(found: list[str]) -> list[str | Path]:
    """The gin files to read for these, of a run folder its config.gin."""
    return [Path(one) / "config.gin" if Path(one).is_dir() else one for one in found]
