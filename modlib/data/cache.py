"""Where things that can be made again are kept."""

from __future__ import annotations

import fcntl
import logging
import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from modlib.runtime.errors import DataError

logger = logging.getLogger("modlib")


def cache_folders() -> list[Path]:
    """Places to look in, best first: $MODLIB_CACHE or ~/.cache/modlib, then one in the folder for temporary files."""
    chosen = os.environ.get("MODLIB_CACHE")
    try:
        first = Path(chosen).expanduser() if chosen else Path.home() / ".cache" / "modlib"
    except RuntimeError:  # no home folder, as in some containers
        return [_temporary()]
    return [first, _temporary()]


def writable_cache() -> Path:
    """The first of the cache folders that can be written; made if need be.

    Raises:
        DataError: None can be written.
    """
    refused: list[str] = []
    for folder in cache_folders():
        problem = _problem(folder)
        if problem is None:
            if refused:
                logger.warning("cache: %s; using %s instead. Set MODLIB_CACHE to a writable folder", refused[0], folder)
            return folder
        refused.append(f"{folder} {problem}")
    raise DataError(f"cache folder must be writable: {'; '.join(refused)}; set MODLIB_CACHE to a writable folder")


@contextmanager
def one_at_a_time(path: Path, waiting: Callable[[], None]) -> Iterator[None]:
    """Hold a lock file; where the file system has no locks, go on without.

    Args:
        path: The lock file; it stays.
        waiting: Called once when another process holds it.
    """
    with open(path, "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waiting()
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            logger.debug("no lock on %s (%s)", path, error)
        yield


def _temporary() -> Path:
    return Path(tempfile.gettempdir()) / f"modlib-{os.getuid()}"


def _problem(folder: Path) -> str | None:
    """Why a folder cannot be the cache; None when it can."""
    try:
        folder.mkdir(mode=0o700 if folder == _temporary() else 0o777, parents=True, exist_ok=True)
        if folder == _temporary() and (folder.is_symlink() or folder.stat().st_uid != os.getuid()):
            return "belongs to another user"
        with tempfile.TemporaryFile(dir=folder):
            return None
    except OSError as error:
        return f"cannot be written ({error.strerror})"


def trusted(folder: Path) -> bool:
    """Whether what lies in a cache folder was put there by this user or by whoever chose the folder."""
    if folder != _temporary():
        return True
    try:
        status = os.lstat(folder)
    except OSError:
        return False
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid()
