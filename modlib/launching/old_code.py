"""The code that a run was made with, put together again: its snapshot, or its commit with what was changed since."""

from __future__ import annotations

import logging
import os
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from modlib.launching.git import SOURCE, git
from modlib.launching.snapshot import Snapshot, verify_snapshot
from modlib.runtime.errors import RunFolderError
from modlib.runtime.run_folder import RunFolder

logger = logging.getLogger("modlib")

PATCH = "dirty.patch"
MOST_NAMED = 5


@dataclass(frozen=True)
class OldCode:
    """Code that can be run.

    Args:
        source: The folder that holds launch.py and the package modlib.
        python_paths: What PYTHONPATH must begin with, in order.
        what: What it is, for people.
    """

    source: Path
    python_paths: tuple[Path, ...]
    what: str


@contextmanager
def old_code(run: RunFolder, repository: Path = SOURCE) -> Iterator[OldCode]:
    """The code of a run, as long as the context lasts.

    Args:
        run: The run.
        repository: Where its commit is looked for, if the run folder holds no snapshot.

    Raises:
        RunFolderError: The run recorded no code, its snapshot was edited, or its commit or changes cannot be had.
    """
    state = run.read()
    if state.get("code"):
        snapshot = _snapshot(run, str(state["code"]))
        paths = snapshot.python_paths
        yield OldCode(snapshot.path / "project", paths, f"code/{snapshot.path.name} of the run folder")
        return
    commit = state.get("git_commit")
    if not commit:
        raise RunFolderError(
            f"run ({run.path}) must have recorded its code to be reproduced, but has neither a snapshot nor a commit; "
            "run from a git checkout, or on a cluster"
        )
    _require_whole(run, state)
    with tempfile.TemporaryDirectory(prefix="modlib-code-") as folder:
        source = Path(folder) / "project"
        _export(repository, commit, source)
        what = f"commit {commit[:12]}"
        if state.get("git_dirty"):
            _apply(run.path / PATCH, source, run)
            what += f" with {PATCH}"
        yield OldCode(source, (source,), what)


def _snapshot(run: RunFolder, sha256: str) -> Snapshot:
    """The verified snapshot of a run, or of the sweep that it is a point of, or of the run that it repeats."""
    folders = [run.path, run.path.resolve().parent]
    if original := run.read().get("reproduces"):
        folders += [Path(original), Path(original).parent]
    places = [folder / "code" / sha256[:12] for folder in folders]
    return verify_snapshot(next((place for place in places if place.is_dir()), places[0]))


def _require_whole(run: RunFolder, state: dict[str, object]) -> None:
    """Refuse changes of which not all were recorded; say which files were not."""
    if state.get("git_dirty") is None:
        raise RunFolderError(
            f"run ({run.path}) must have recorded what was changed since its commit, but git diff failed when it began"
        )
    if state.get("git_patch_cut_from_bytes"):
        raise RunFolderError(
            f"{run.path / PATCH} must hold all that was changed since the commit, but was cut when the run began; "
            "it cannot be reproduced"
        )
    untracked = state.get("git_untracked")
    if isinstance(untracked, list) and untracked:
        more = f" and {len(untracked) - MOST_NAMED} more" if len(untracked) > MOST_NAMED else ""
        logger.warning(
            "untracked files were beside the code of this run and are not in what it recorded: %s%s",
            ", ".join(map(str, untracked[:MOST_NAMED])),
            more,
        )


def _export(repository: Path, commit: str, target: Path) -> None:
    """The tracked files of a commit, in a new folder."""
    archive = target.with_suffix(".tar")
    if git(repository, "cat-file", "-e", f"{commit}^{{commit}}") is None:
        raise RunFolderError(
            f"commit ({commit}) of the run must be in the repository {repository}, but is not; fetch it, or call "
            "modlib from a checkout that has it"
        )
    if git(repository, "archive", "--format=tar", f"--output={archive}", commit) is None:
        raise RunFolderError(
            f"commit ({commit}) must be readable in {repository}, but git archive failed; try it there"
        )
    with tarfile.open(archive) as file:
        # Python 3.11 knows filters from 3.11.4 on; what git made of its own commit has nothing to be filtered
        file.extractall(target, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))  # type: ignore[arg-type]
    archive.unlink()


def _apply(patch: Path, source: Path, run: RunFolder) -> None:
    done = subprocess.run(
        ["git", "apply", "--whitespace=nowarn", str(patch.resolve())],
        cwd=source, capture_output=True, text=True, errors="replace",
        env={"PATH": os.environ.get("PATH", os.defpath), "GIT_CEILING_DIRECTORIES": str(source.parent)},
    )  # fmt: skip
    if done.returncode != 0:
        raise RunFolderError(
            f"{patch} must apply to the commit of run {run.name}, but does not: {_first_line(done.stderr)}; was it "
            "edited, or did it hold a secret, which is not written down?"
        )


def _first_line(text: str) -> str:
    return next(iter(text.strip().splitlines()), "git apply failed")
