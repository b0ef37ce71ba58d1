"""Small projects with a package modlib in real git repositories, and users' modules that are really imported."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from modlib.config import Config
from modlib.config.imports import import_user_module


def write(folder: Path, files: dict[str, str]) -> None:
    """Write texts, by name below a folder."""
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    allowed = ["-c", "protocol.file.allow=always"]  # submodules from a folder
    words = ["git", *identity, *allowed, *arguments]
    return subprocess.run(words, cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


def commit_all(folder: Path, message: str = "one") -> None:
    """One commit with all that lies in a folder, in a repository of its own."""
    if not (folder / ".git").exists():
        git(folder, "init", "--quiet")
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", message)


def new_project(folder: Path) -> Path:
    """A folder with a package modlib, committed."""
    write(folder, {"modlib/__init__.py": "__version__ = '1'\n", "gin_configs/a.gin": "A = 1\n", "launch.py": ""})
    (folder / "launch.py").chmod(0o755)
    commit_all(folder)
    return folder


@contextmanager
def importing(config: Config, folder: Path, *names: str) -> Iterator[Config]:
    """A config that imports these modules from a folder, as gin files make one; forgets them afterwards."""
    modules, path = set(sys.modules), list(sys.path)
    try:
        found = [import_user_module(name, [folder]) for name in names]
        folders = tuple(dict.fromkeys(place for place in found if place is not None))
        yield dataclasses.replace(config, imports=names, import_paths=folders)
    finally:
        sys.path[:] = path
        for name in set(sys.modules) - modules:
            del sys.modules[name]
