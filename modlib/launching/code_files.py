"""Which files a snapshot of the code holds, and where in it each one lies."""

from __future__ import annotations

import ast
import logging
import os
import stat
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from modlib.config import Config
from modlib.config.files import ROOTS
from modlib.launching.git import commit_of, tracked
from modlib.launching.own_modules import OwnModule, own_modules
from modlib.runtime.units import format_bytes

logger = logging.getLogger("modlib")

MOST_BYTES = 5 << 20
PROJECT = "project"
NOT_RUN = ("tests", "docs", "benchmarks", "notebooks", "runs")


@dataclass
class CodeFiles:
    """What a snapshot is made of.

    Args:
        files: The file to copy, by its name in the snapshot.
        links: Texts of links, which lead to others of these files.
        left_out: Why a tracked file is not among them; by what its name would be, or its folder's with a slash.
        python_paths: Folders of the snapshot from which Python imports, in order.
        sources: The folder that each one of `project` and `user/0`, `user/1`, ... was copied from.
        commit: The project's; None where it is not under version control.
    """

    files: dict[str, Path] = field(default_factory=dict)
    links: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    python_paths: tuple[str, ...] = ()
    sources: dict[str, str] = field(default_factory=dict)
    commit: str | None = None


def code_files(source: Path, config: Config) -> CodeFiles:
    """The project's tracked files, and the modules that no installed package has and a run needs.

    Without git the project is the package modlib and the gin files beside it. A file that is neither tracked nor
    imported is never among them: it may hold anything.

    Args:
        source: The folder that holds the package modlib.
        config: Active, so that its modules are loaded.
    """
    source = source.resolve()
    code = CodeFiles(sources={PROJECT: str(source)}, commit=commit_of(source))
    names = tracked(source) if code.commit else None
    names = _untracked_project(source) if names is None else names
    not_run = [name for name in names if name.partition("/")[0] in NOT_RUN and "/" in name]
    _add_tracked(code, source, PROJECT, sorted({*names} - {*not_run}))
    modules = own_modules(source, config)
    folders = _folders(source, [module.root for module in modules])
    code.python_paths = tuple(folders.values())
    code.sources |= {folder: str(root) for root, folder in folders.items() if not root.is_relative_to(source)}
    for root, package in sorted({(module.root, module.place.parts[0]) for module in modules}):
        if not root.is_relative_to(source) and (root / package).is_dir():
            _add_tracked(code, root / package, f"{folders[root]}/{package}", tracked(root / package) or ())
    for module in modules:
        _add_module(code, module, f"{folders[module.root]}/{module.place}")
    for folder, count in Counter(name.partition("/")[0] for name in not_run).items():
        code.left_out[f"{PROJECT}/{folder}/"] = f"a run needs none of its files ({count}), unless it imports them"
    return code


def _untracked_project(source: Path) -> list[str]:
    """The names that stand for the tracked ones where git has none."""
    paths = [*(source / "modlib").rglob("*"), *(path for root in ROOTS for path in (source / root).rglob("*.gin"))]
    names = [path.relative_to(source) for path in paths if path.is_symlink() or not path.is_dir()]
    return [str(name) for name in names if not any(part.startswith((".", "__pycache__")) for part in name.parts)]


def _folders(source: Path, roots: Iterable[Path]) -> dict[Path, str]:
    """The snapshot's folder for each folder on sys.path that modules are imported from; in the order of sys.path."""
    places = [os.path.realpath(path) for path in sys.path]

    def place(root: Path) -> tuple[int, bool, Path]:
        return (places.index(str(root)) if str(root) in places else len(places), root == source, root)

    folders: dict[Path, str] = {}
    num_users = 0
    for root in sorted({source, *roots}, key=place):
        if root.is_relative_to(source):
            folders[root] = str(PROJECT / root.relative_to(source))
        else:
            folders[root] = f"user/{num_users}"
            num_users += 1
    return folders


def _add_tracked(code: CodeFiles, folder: Path, prefix: str, names: Iterable[str]) -> None:
    """Add the tracked files below a folder, as they lie there; what was deleted is not there."""
    links: list[str] = []
    reasons: dict[str, str] = {}
    for name in names:
        path = folder / name
        try:
            status = path.lstat()
        except (FileNotFoundError, NotADirectoryError):
            continue
        if stat.S_ISLNK(status.st_mode):
            links.append(name)
        elif stat.S_ISDIR(status.st_mode):
            reasons[name] = "a submodule that is not checked out"
        elif not stat.S_ISREG(status.st_mode):
            reasons[name] = "not a file"
        elif status.st_size > MOST_BYTES:
            reasons[name] = f"larger than {format_bytes(MOST_BYTES)}"
        elif path.suffix == ".ipynb":
            reasons[name] = "a notebook"
        elif "__pycache__" not in path.parts:
            code.files[f"{prefix}/{name}"] = path
    for name in links:
        target = Path(os.path.realpath(folder / name))
        inside = f"{prefix}/{target.relative_to(folder)}" if target.is_relative_to(folder) else None
        if inside is None:
            reasons[name] = "a link to outside"
        elif inside in code.files or any(file.startswith(f"{inside}/") for file in code.files):
            code.links[f"{prefix}/{name}"] = os.path.relpath(inside, os.path.dirname(f"{prefix}/{name}"))
        else:
            reasons[name] = "a link to what is not in the snapshot"
    code.left_out |= {f"{prefix}/{name}": reason for name, reason in reasons.items()}


def _add_module(code: CodeFiles, module: OwnModule, name: str) -> None:
    """Add an imported module, unless it is there as a tracked file or behind a link."""
    if name in code.files or any(str(parent) in code.links for parent in (Path(name), *Path(name).parents)):
        return
    code.files[name] = module.file
    code.left_out.pop(name, None)
    if _uses_file(module.file):
        logger.warning(
            "%s uses __file__: what it reads beside itself is in the snapshot that the job runs only where git tracks "
            "it; track it, or give its absolute path in the gin file",
            module.file,
        )


def _uses_file(file: Path) -> bool:
    text = file.read_bytes()
    if file.suffix != ".py" or b"__file__" not in text:
        return False
    try:
        return any(isinstance(node, ast.Name) and node.id == "__file__" for node in ast.walk(ast.parse(text)))
    except (SyntaxError, ValueError):
        return False
