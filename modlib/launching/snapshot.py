"""The code that a submitted job runs: copied into the run folder, and known by its hash.

A job may start days after it was submitted, and again after each requeue. What was submitted is what runs, whatever is
edited meanwhile. A snapshot lies in `code/<first 12 digits of its hash>/` of the run folder:

    project/        the tracked files as they lie in the working tree, and imported ones that are not tracked
    user/0/ ...     users' modules from outside the project, one folder for each folder that they are imported from
    snapshot.json   hash and mode of every file, written last; what was left out, and why

Python writes no bytecode in there: each folder of modules has an empty file in the place of `__pycache__`. So nothing
but the verified text is ever run, and hundreds of ranks do not write the same folder at once.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import os
import secrets
import stat
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypedDict

from modlib.config import Config
from modlib.launching.code_files import CodeFiles, code_files
from modlib.launching.git import SOURCE, git
from modlib.runtime import durable
from modlib.runtime.errors import RunFolderError
from modlib.runtime.json_files import JSONError, read_json
from modlib.runtime.run_folder import RunFolder

logger = logging.getLogger("modlib")

MANIFEST = "snapshot.json"
FORMAT = 1
CHUNK_BYTES = 1 << 20
MOST_NAMED = 10
ABANDONED_S = 3600.0
FILE, EXECUTABLE, LINK = "100644", "100755", "120000"  # git's modes


@dataclass(frozen=True)
class Snapshot:
    """A complete copy of the code.

    Args:
        path: `runs/<name>/code/<first 12 digits of the hash>`, absolute.
        sha256: Over name, mode and content of every file, and the Python paths, in hex.
    """

    path: Path
    sha256: str

    @property
    def python_paths(self) -> tuple[Path, ...]:
        """What PYTHONPATH must begin with, in this order; all inside `path`."""
        return tuple(self.path / name for name in _manifest(self.path)["python_paths"])


def take_snapshot(run: RunFolder, config: Config, source: Path = SOURCE) -> Snapshot:
    """Copy the code into the run folder, or find it there; in a job that runs a snapshot of this run, find that one.

    Args:
        run: Where the snapshot goes; the folder exists.
        config: Active, so that its modules are loaded.
        source: The folder that holds the package modlib.

    Raises:
        RunFolderError: A file cannot be read or written.
    """
    folder = run.path.absolute() / "code"
    if source.resolve().parents[1] == folder.resolve():
        return verify_snapshot(source.resolve().parent)
    aside = folder / f".tmp-{secrets.token_hex(4)}"
    try:
        code = code_files(source, config)
        folder.mkdir(exist_ok=True)
        _remove_abandoned(folder)
        durable.make_directory(aside)
        try:
            files = _copy_all(code, aside)
            sha256 = _sha256(files, code.python_paths)
            manifest = {
                "format": FORMAT,
                "sha256": sha256,
                "git_commit": code.commit,
                "git_dirty": _is_dirty(source) if code.commit else None,
                "python_paths": list(code.python_paths),
                "sources": code.sources,
                "left_out": code.left_out,
                "files": files,
            }
            durable.write_new_file(aside / MANIFEST, (json.dumps(manifest, indent=1) + "\n").encode())
            (aside / MANIFEST).chmod(0o444 & (aside / MANIFEST).stat().st_mode)
            return _commit(aside, Snapshot(folder / sha256[:12], sha256))
        finally:
            if aside.exists():
                durable.remove_tree(aside)
    except OSError as error:
        raise RunFolderError(
            f"code snapshot ({folder}) must be complete, but {error.filename or 'a file'} cannot be read or written: "
            f"{error.strerror or error}; correct that, or choose another --runs_dir, and submit again"
        ) from error


def verify_snapshot(path: Path) -> Snapshot:
    """Read every file of a snapshot and see that it is what was submitted.

    Raises:
        RunFolderError: Naming the files that are missing, changed or added.
    """
    path = Path(path).absolute()
    manifest = _manifest(path)
    expected: dict[str, str] = manifest["files"]
    try:
        found = {name: _entry(path / name) for name in _names(path)}
    except OSError as error:
        raise RunFolderError(
            f"code snapshot ({path}) must be readable, but {error.filename} is not: {error.strerror}; correct that, or "
            "submit again"
        ) from error
    wrong = {
        "changed": [name for name in expected if found.get(name, expected[name]) != expected[name]],
        "missing": [name for name in expected if name not in found],
        "added": [name for name in found if name not in expected],
    }
    if _sha256(expected, manifest["python_paths"]) != manifest["sha256"] or path.name != manifest["sha256"][:12]:
        wrong["changed"].append(MANIFEST)
    if any(wrong.values()):
        told = "; ".join(f"{kind}: {_listed(names)}" for kind, names in wrong.items() if names)
        raise RunFolderError(
            f"code snapshot ({path}) must be the code that was submitted ({manifest['sha256'][:12]}), but was edited "
            f"({told}); set this back, or submit again"
        )
    return Snapshot(path, manifest["sha256"])


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(sorted(names)[:MOST_NAMED])
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return shown.encode(errors="surrogateescape").decode(errors="replace") + more


class SnapshotRecord(TypedDict):
    """The fields of snapshot.json that are read."""

    format: Literal[1]  # FORMAT
    sha256: str
    python_paths: list[str]
    files: dict[str, str]


def _manifest(path: Path) -> SnapshotRecord:
    try:
        return read_json(path / MANIFEST, SnapshotRecord)
    except JSONError as error:
        raise RunFolderError(
            f"code snapshot ({path}) must have a {MANIFEST} that this version of modlib reads (format {FORMAT}), but "
            f"{error}; submit again"
        ) from error


def _sha256(files: Mapping[str, str], python_paths: Sequence[str]) -> str:
    lines = [*(f"{name}\0{files[name]}\n" for name in sorted(files)), *(f"{path}\n" for path in python_paths)]
    return hashlib.sha256("".join(lines).encode(errors="surrogateescape")).hexdigest()


def _is_dirty(source: Path) -> bool | None:
    status = git(source, "status", "--porcelain", "--untracked-files=no", "--", ".")
    return None if status is None else bool(status)


# ------------------------------------------------------------------------------------------------ writing and reading


def _copy_all(code: CodeFiles, aside: Path) -> dict[str, str]:
    """Copy files and links; returns mode and hash of each by name, as the manifest has them."""
    entries: dict[str, str] = {}
    folders: set[Path] = set()
    for name, original in code.files.items():
        target = aside / name
        if target.parent not in folders:
            target.parent.mkdir(parents=True, exist_ok=True)
            folders.add(target.parent)
        entries[name] = _copy(original, target)
    for name, text in code.links.items():
        (aside / name).parent.mkdir(parents=True, exist_ok=True)
        (aside / name).symlink_to(text)
        entries[name] = _entry(aside / name)
    for folder in {(aside / name).parent for name in code.files if name.endswith(".py")}:
        (folder / "__pycache__").touch(mode=0o444)
    return entries


def _copy(original: Path, target: Path) -> str:
    """Copy a file, read-only; returns its mode and hash. Not waited for: a job that finds it torn refuses it."""
    hasher = hashlib.sha256()
    with open(original, "rb", buffering=0) as file:
        executable = bool(os.fstat(file.fileno()).st_mode & stat.S_IXUSR)
        descriptor = durable.create_file(target)
        try:
            offset = 0
            while data := file.read(CHUNK_BYTES):
                hasher.update(data)
                durable.write_all(descriptor, memoryview(data), offset, target)
                offset += len(data)
            mode = os.fstat(descriptor).st_mode & 0o444  # who may read it, by this process's umask
            os.fchmod(descriptor, mode | (mode >> 2 if executable else 0))
        finally:
            os.close(descriptor)
    return f"{EXECUTABLE if executable else FILE} {hasher.hexdigest()}"


def _entry(path: Path) -> str:
    """Mode and hash of a file, or of a link's text."""
    mode = path.lstat().st_mode
    if stat.S_ISLNK(mode):
        return f"{LINK} {hashlib.sha256(os.fsencode(os.readlink(path))).hexdigest()}"
    if not stat.S_ISREG(mode):
        return "no file"
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return f"{EXECUTABLE if mode & stat.S_IXUSR else FILE} {digest}"


def _names(path: Path, prefix: str = "") -> Iterator[str]:
    """Everything in a snapshot that is no folder, without the manifest and bytecode."""
    with os.scandir(path / prefix) as entries:
        for entry in entries:
            name = prefix + entry.name
            if entry.is_dir(follow_symlinks=False):
                if entry.name != "__pycache__":
                    yield from _names(path, f"{name}/")
            elif entry.name != "__pycache__" and name != MANIFEST:
                yield name


def _commit(aside: Path, snapshot: Snapshot) -> Snapshot:
    """Give a finished copy its name, unless the same is there already; one that was damaged is replaced."""
    try:
        durable.rename(aside, snapshot.path)  # fails where there is a folder of that name, unless it is empty
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        try:
            if verify_snapshot(snapshot.path).sha256 == snapshot.sha256:
                return snapshot
        except RunFolderError as damage:
            logger.warning("taking the code snapshot anew: %s", damage)
        if not durable.exchange(aside, snapshot.path):
            damaged = aside.with_suffix(".damaged")
            durable.rename(snapshot.path, damaged)
            durable.rename(aside, snapshot.path)
            durable.remove_tree(damaged)
    durable.fsync_directory(snapshot.path.parent)
    return snapshot


def _remove_abandoned(folder: Path) -> None:
    """Remove what submissions left that were killed long ago."""
    for path in folder.glob(".tmp-*"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > ABANDONED_S:
                durable.remove_tree(path)
