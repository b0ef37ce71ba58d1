"""Imports the modules that gin files name, from sys.path, the gin file's own folder, or the working directory."""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import sys
import sysconfig
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from modlib.components import PACKAGE
from modlib.runtime.errors import ConfigError


class ImportProblem(Exception):
    """A module that cannot be imported; the text is for the user."""


def import_user_module(name: str, folders: Sequence[Path]) -> Path | None:
    """Import a module; its decorators register its components.

    Args:
        name: Dotted name, as written in the gin file.
        folders: Looked in when the module is not on sys.path, in this order; the one that has it joins sys.path.

    Returns:
        The folder that has to be on sys.path for another process to import it; None for installed packages.

    Raises:
        ImportProblem: The module is not found, or raises while it is imported.
    """
    top = name.partition(".")[0]
    try:
        _make_importable(top, folders)
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if name == missing or name.startswith(missing + "."):
            looked = ", ".join(dict.fromkeys(str(folder) for folder in folders))
            raise ImportProblem(
                f"cannot find the module {missing} (import {name}); looked on sys.path and in {looked}; "
                "put it in one of these, or its folder on PYTHONPATH"
            ) from error
        raise ImportProblem(f"cannot import {name}: {_told(error)}") from error
    except ConfigError as error:
        raise ImportProblem(f"cannot import {name}: {error}") from error
    except (Exception, SystemExit) as error:  # a user's module may raise anything
        raise ImportProblem(f"cannot import {name}: {_told(error)}") from error
    return _folder_of(sys.modules.get(top, module))


def _make_importable(top: str, folders: Sequence[Path]) -> None:
    if top in sys.modules or importlib.util.find_spec(top) is not None:
        return
    for folder in folders:
        if importlib.machinery.PathFinder.find_spec(top, [str(folder)]) is not None:
            sys.path.append(str(folder))
            importlib.invalidate_caches()
            return


def _folder_of(module: ModuleType) -> Path | None:
    locations = list(getattr(module, "__path__", []))
    file = Path(locations[0]) if locations else Path(getattr(module, "__file__", None) or sys.prefix)
    folder = file.resolve().parent
    installed = [Path(sysconfig.get_path(kind)).resolve() for kind in ("stdlib", "purelib", "platlib")]
    if folder == PACKAGE.parent or any(folder.is_relative_to(place) for place in installed):
        return None
    return folder


def _told(error: BaseException) -> str:
    """The error and the user's line that raised it."""
    if isinstance(error, SyntaxError):
        return f"{type(error).__name__}: {error.msg} ({Path(error.filename or '').name}:{error.lineno})"
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "importlib" not in frame.filename]
    frames = [frame for frame in frames if Path(frame.filename).resolve().parent != PACKAGE / "config"]
    where = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {error}{where}"
