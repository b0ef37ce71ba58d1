"""Which modules are the user's own: what is loaded, and what that imports later, without importing any of it."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import os
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType

from modlib.config import Config

_STANDARD = [sysconfig.get_path(kind) for kind in ("stdlib", "platstdlib")]
STANDARD_LIBRARY = tuple(os.path.join(folder, "") for path in _STANDARD for folder in (path, os.path.realpath(path)))
INSTALLED = {"site-packages", "dist-packages"}


@dataclass(frozen=True)
class OwnModule:
    """A module that belongs to no installed package.

    Args:
        name: Dotted.
        file: Its source, or its shared library.
        root: The folder on sys.path that it is imported from, links resolved.
        place: The file's name below a folder of sys.path where Python finds the module, `package/module.py`.
    """

    name: str
    file: Path
    root: Path
    place: Path


def own_modules(source: Path, config: Config) -> list[OwnModule]:
    """The modules that are no installed packages' and that a run needs, by name.

    These are the loaded ones below the project or the config's import paths, those that the config imports, and all
    that their files import anywhere, also inside functions.

    Args:
        source: The folder that holds the package modlib.
        config: Active, so that its modules are loaded.
    """
    importlib.invalidate_caches()
    folders = [folder.resolve() for folder in (source, *config.import_paths)]
    tops = {_top(name) for name in config.imports}
    waiting = []
    for module in list(sys.modules.values()):
        spec = vars(module).get("__spec__") if isinstance(module, ModuleType) else None
        if isinstance(spec, ModuleSpec) and (file := _own_file(spec)) is not None:
            inside = any(file.is_relative_to(folder) for folder in folders)
            waiting += [spec.name] if inside or _top(spec.name) in tops else []
    found: dict[str, OwnModule] = {}
    seen: set[str] = set()
    while waiting:
        name = waiting.pop()
        if name in seen or _top(name) in sys.stdlib_module_names:
            continue
        seen.add(name)
        spec = _spec(name)
        file = None if spec is None else _own_file(spec)
        if spec is None or file is None:
            continue
        if _top(name) == "modlib" and not file.is_relative_to(folders[0]):
            continue  # the modlib that runs is not the project's
        found[name] = _own_module(spec, file)
        waiting += list(_parents(name))
        waiting += _imports(file, name if spec.submodule_search_locations is not None else name.rpartition(".")[0])
    return [found[name] for name in sorted(found)]


def _own_module(spec: ModuleSpec, file: Path) -> OwnModule:
    folder = Path(*spec.name.split("."))
    place = folder / file.name if spec.submodule_search_locations is not None else folder.parent / file.name
    depth = len(place.parts)
    if file.parts[-depth:] == place.parts:
        return OwnModule(spec.name, file, file.parents[depth - 1].resolve(), place)
    top = _spec(_top(spec.name)) or spec  # found by what maps names to folders, as an editable install does
    top_file = Path(top.origin) if top.has_location and top.origin else file
    is_package = top.submodule_search_locations is not None
    root = top_file.parent.parent if is_package else top_file.parent
    return OwnModule(spec.name, file, root.resolve(), place)


def _own_file(spec: ModuleSpec) -> Path | None:
    """The file of a module that is not of the standard library or an installed package; None for all others."""
    origin = spec.origin
    if not spec.has_location or not origin or origin.startswith(STANDARD_LIBRARY) or "/site-packages/" in origin:
        return None  # almost all; looked at no further
    resolved = os.path.realpath(origin)
    if resolved.startswith(STANDARD_LIBRARY) or INSTALLED & {*Path(origin).parts, *Path(resolved).parts}:
        return None
    return Path(os.path.abspath(origin)) if os.path.isfile(resolved) else None


def _spec(name: str) -> ModuleSpec | None:
    """Where a module is, or would be imported from."""
    if (module := sys.modules.get(name)) is not None:
        spec = getattr(module, "__spec__", None)
        return spec if isinstance(spec, ModuleSpec) else None
    parent = name.rpartition(".")[0]
    try:
        if not parent:
            return importlib.util.find_spec(name)
        package = _spec(parent)
        locations = None if package is None else package.submodule_search_locations
        return PathFinder.find_spec(name, list(locations)) if locations else None
    except (ImportError, AttributeError, ValueError):  # what finders raise for names they cannot look up
        return None


def _imports(file: Path, package: str) -> list[str]:
    """The names that a file's import statements may mean as modules; none where it cannot be read as Python."""
    if file.suffix != ".py":
        return []
    try:
        tree = ast.parse(file.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return []
    names: list[str] = []
    for node in _statements(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            try:
                base = importlib.util.resolve_name("." * node.level + (node.module or ""), package or None)
            except ImportError:  # more dots than packages
                continue
            names += [base, *(f"{base}.{alias.name}" for alias in node.names)]
    return [name for whole in dict.fromkeys(names) for name in (whole, *_parents(whole))]


def _statements(tree: ast.AST) -> Iterator[ast.AST]:
    """Every statement at any depth; expressions, most of a tree, hold none."""
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        yield node
        for field in ("body", "handlers", "orelse", "finalbody", "cases"):
            waiting += getattr(node, field, ())


def _parents(name: str) -> Iterator[str]:
    while name := name.rpartition(".")[0]:
        yield name


def _top(name: str) -> str:
    return name.partition(".")[0]
