"""Where things that can be made again are kept."""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import re
import stat
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from modlib.runtime import durable
from modlib.runtime.errors import DataError

logger = logging.getLogger("modlib")

Made = TypeVar("Made")


class CacheError(DataError):
    """No cache folder can be written."""


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
        CacheError: None can be written.
    """
    refused: list[str] = []
    for folder in cache_folders():
        problem = _problem(folder)
        if problem is None:
            if refused:
                logger.warning("cache: %s; using %s instead. Set MODLIB_CACHE to a writable folder", refused[0], folder)
            return folder
        refused.append(f"{folder} {problem}")
    raise CacheError(f"cache folder must be writable: {'; '.join(refused)}; set MODLIB_CACHE to a writable folder")


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


def kept(
    kind: str, name: str, read: Callable[[Path], Made | None], make: Callable[[Path], Made], waiting_for: str
) -> Made:
    """What was made before and lies in a cache, or else make it there. One process makes it, others wait.

    Args:
        kind: The folder within the cache.
        name: The file, which stands for all that what is in it was made from.
        read: Gives what is in a file; None when there is none, or it is to be made again.
        make: Makes the file and gives what is in it.
        waiting_for: What another process does that is waited for.

    Raises:
        CacheError: It is not there and no cache folder can be written.
        OSError: Nor can this one any more.
    """
    for cache in cache_folders():
        if trusted(cache) and (found := read(cache / kind / name)) is not None:
            return found
    folder = writable_cache() / kind
    folder.mkdir(exist_ok=True)
    lock = folder / f"{name}.lock"
    try:
        with one_at_a_time(lock, lambda: logger.info("waiting for another process that %s", waiting_for)):
            found = read(folder / name)
            return make(folder / name) if found is None else found
    finally:
        lock.unlink(missing_ok=True)


def remembered_hash(kind: str, path: Path, identity: Sequence[int], read: Callable[[], str]) -> str:
    """A hash of a file's contents, as it was read when a file of this identity was first asked for at this path.

    Args:
        kind: The folder within the cache.
        path: The file.
        identity: What changes with the contents: size, time stamps.
        read: Gives the hash.

    Raises:
        CacheError: It is not remembered and no cache folder can be written.
        OSError: Nor can this one any more.
    """
    resolved = str(path.resolve())
    place = re.sub(r"\W+", "-", resolved)[-60:]
    key = hashlib.sha256(json.dumps([resolved, *identity]).encode()).hexdigest()[:16]
    name = f"{place}-{key}.json"
    for cache in cache_folders():
        try:
            if trusted(cache):
                return str(json.loads((cache / kind / name).read_text(encoding="utf-8"))["sha256"])
        except (OSError, ValueError, KeyError, TypeError):
            continue
    found = read()
    folder = writable_cache() / kind
    folder.mkdir(exist_ok=True)
    durable.atomic_write_text(folder / name, json.dumps({"path": resolved, "sha256": found}))
    return found


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
