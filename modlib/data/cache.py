"""A cache for anything that can be rebuilt."""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import re
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from modlib.runtime import durable
from modlib.runtime.errors import DataError
from modlib.runtime.json_files import JSONError, read_json

logger = logging.getLogger("modlib")

Made = TypeVar("Made")

_TICK_NS = 20_000_000  # two ticks of the slowest clock in use, 100 a second
_TIMES_READ = 3


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
def one_at_a_time(
    path: Path, waiting: Callable[[], None], still_waiting: Callable[[], object] | None = None
) -> Iterator[None]:
    """Hold a lock file; where the file system has no locks, go on without.

    Args:
        path: The lock file; it stays.
        waiting: Called once when another process holds it.
        still_waiting: Called every second until that lets go. None: nothing is.
    """
    with open(path, "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waiting()
            while still_waiting is not None and not _lock_now(file.fileno()):
                still_waiting()
                time.sleep(1.0)
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            logger.debug("no lock on %s (%s)", path, error)
        yield


def _lock_now(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


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


def file_identity(status: os.stat_result) -> tuple[int, ...]:
    """What tells a file, as it is now, from any other at the same path: its change time cannot be set back."""
    return (status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)


def remembered_hash(
    kind: str,
    path: Path,
    status: Callable[[], os.stat_result],
    read: Callable[[], str],
    waiting: Callable[[], object] = lambda: None,
) -> str:
    """A hash of a file's contents, read now unless it was read of a file of this identity at this path before.

    One process reads, others that ask for the same wait.

    Args:
        kind: The folder within the cache.
        path: The file.
        status: Looks at the file as it is when called.
        read: Gives the hash. Whatever it raises, nothing is remembered.
        waiting: Called every second while another process reads.

    Raises:
        CacheError: It is not remembered and no cache folder can be written.
        OSError: Nor can this one any more.
        DataError: The file changed each time it was read.
    """
    seen = _settled(status)
    if (found := _recalled(kind, path, seen)) is not None:
        return found
    folder = writable_cache() / kind
    folder.mkdir(exist_ok=True)
    lock = folder / f"{_hash_name(path, seen)}.lock"
    try:
        with one_at_a_time(lock, lambda: logger.info("waiting for another process that hashes %s", path), waiting):
            if (found := _recalled(kind, path, seen)) is None:
                found, seen = _read_unchanged(path, status, read)
                remember_hash(kind, path, seen, found)
            return found
    finally:
        with suppress(OSError):
            lock.unlink()


def remember_hash(kind: str, path: Path, status: os.stat_result, sha256: str) -> None:
    """Keep the hash of a file that was read or written whole; where that fails, a warning says so.

    Args:
        kind: The folder within the cache.
        path: The file.
        status: As it was when it was read.
        sha256: Of its contents.
    """
    try:
        folder = writable_cache() / kind
        folder.mkdir(exist_ok=True)
        content = json.dumps({"path": str(path.resolve()), "sha256": sha256})
        durable.atomic_write_text(folder / _hash_name(path, status), content)
    except (CacheError, OSError) as error:
        logger.warning("the hash of %s cannot be kept, and is computed at each start: %s", path, error)


def _recalled(kind: str, path: Path, status: os.stat_result) -> str | None:
    for cache in cache_folders():
        try:
            if trusted(cache):
                return read_json(cache / kind / _hash_name(path, status), dict[str, str])["sha256"]
        except (JSONError, KeyError):
            continue
    return None


def _hash_name(path: Path, status: os.stat_result) -> str:
    resolved = str(path.resolve())
    key = hashlib.sha256(json.dumps([resolved, *file_identity(status)]).encode()).hexdigest()[:16]
    place = re.sub(r"\W+", "-", resolved)[-60:]
    return f"{place}-{key}.json"


def _read_unchanged(
    path: Path, status: Callable[[], os.stat_result], read: Callable[[], str]
) -> tuple[str, os.stat_result]:
    """A hash, and the file it is of: one that changes while it is read is read again."""
    for _ in range(_TIMES_READ):
        before = _settled(status)
        found = read()
        if file_identity(status()) == file_identity(before):
            return found, before
    raise DataError(
        f"{path} must stay as it is while it is read; it changed {_TIMES_READ} times: start when it is written"
    )


def _settled(status: Callable[[], os.stat_result]) -> os.stat_result:
    """A file whose next change will show in its change time: that counts in ticks of the system's clock."""
    found = status()
    if abs(time.time_ns() - found.st_ctime_ns) < _TICK_NS:
        time.sleep(_TICK_NS / 1e9)
        found = status()
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
