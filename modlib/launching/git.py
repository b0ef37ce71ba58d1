"""What git knows about the code that runs."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

SOURCE = Path(__file__).parents[2]
GIT_TIMEOUT_S = 20.0


def commit_of(source: Path) -> str | None:
    """The commit that the package modlib in this folder belongs to; None where it is not under version control."""
    if git(source, "ls-files", "--error-unmatch", "modlib/__init__.py") is None:
        return None  # installed into a folder that happens to lie in somebody's repository
    commit = git(source, "rev-parse", "HEAD")
    return commit.strip() if commit else None


def tracked(folder: Path) -> list[str] | None:
    """Names of the tracked files below a folder, relative to it; None where git fails.

    Files of submodules are among them; a submodule that is not checked out is there by its folder's name. A name does
    not mean that the file is still in the working tree.
    """
    listed = git(folder, "ls-files", "-z")
    if listed is None:
        return None
    names: list[str] = []
    for name in dict.fromkeys(filter(None, listed.split("\0"))):  # in a merge conflict a name comes several times
        inside = folder / name
        deeper = tracked(inside) if not inside.is_symlink() and (inside / ".git").exists() else None
        names += [name] if deeper is None else [f"{name}/{below}" for below in deeper]
    return names


def git(folder: Path, *arguments: str) -> str | None:
    """What a git command prints; None where it fails. Bytes that are not UTF-8 come as surrogate escapes."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            capture_output=True,
            env=environment | {"GIT_OPTIONAL_LOCKS": "0"},
            stdin=subprocess.DEVNULL,
            timeout=GIT_TIMEOUT_S,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.decode(errors="surrogateescape")
