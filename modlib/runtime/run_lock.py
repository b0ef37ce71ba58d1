"""One trainer in one run folder: a lock for this host, and a lease that other hosts see.

The lease is a file, and a file can be removed, replaced or moved with its folder. So its owner looks at each renewal
whether the lease at the path is still the one it holds, and ends where it is not; and a newcomer that misses the lease
of a run that was training waits for that.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import os
import shlex
import socket
import stat
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypedDict

import psutil

from modlib.runtime.errors import RunFolderError
from modlib.runtime.hard_exit import end_now
from modlib.runtime.json_files import JSONError, parse_json, read_json

logger = logging.getLogger("modlib")

LEASE = "lease.json"
LEASE_RENEWED_S = 8.0
LEASE_LASTS_S = 25.0  # three renewals
CLOCKS_DIFFER_S = 60.0  # hosts and file servers agree on the time to within this
SETTLE_S = 0.3
GIVEN_BACK = b"{}\n"  # what an owner leaves that ends in order; a lease that was tampered with is missing or empty
_MOST_BYTES = 4096

Lost = Callable[[RunFolderError], object]


@contextmanager
def held(
    folder: Path, *, last_trainer: Callable[[], Mapping[str, Any]] = dict, lost: Lost | None = None
) -> Iterator[None]:
    """Hold a run folder for this process.

    A file lock decides where the file system has locks that all hosts see. The lease decides elsewhere, and names
    host, pid and start time. A lease of this host counts while its process lives; one of another host counts while
    it is renewed, which is watched for LEASE_LASTS_S where it looks fresh. A lease that came with a copy of a folder
    counts for nothing: it names another inode.

    When the folder or the lease is moved, removed or replaced meanwhile, this process ends with exit code 4 at the next
    renewal, whatever it is doing.

    Args:
        folder: The run folder.
        last_trainer: Asked where the lease is missing: who trained here last and has not said that it ended; empty for
            nobody.
        lost: Called by another thread with the error right before this process ends because it lost the folder; None
            logs it.

    Raises:
        RunFolderError: Another process holds it, or the folder cannot be written.
    """
    folder = Path(os.path.abspath(folder))
    path = folder / LEASE
    descriptor, locked = _open(folder)
    try:
        if locked is not False and not _content(descriptor) and (last := last_trainer()):
            _wait_for(folder, last)
        holder = _parsed(_content(descriptor))
        if locked is False or _holds(path, descriptor, holder):
            raise RunFolderError(_held_by(folder, holder))
        if holder and _is_copied(holder, descriptor):
            logger.info("run folder (%s) is a copy; it is a run of its own", folder)
        elif holder:
            logger.info("taking over from process %s on %s, which is gone", holder.get("pid"), holder.get("host"))
        lease = {**this_process(), "since": time.time(), "inode": os.fstat(descriptor).st_ino}
        try:
            _write(descriptor, json.dumps(lease).encode())
            os.fsync(descriptor)
        except OSError as error:
            raise RunFolderError(unwritable("run folder", folder, error)) from error
        if locked is None:
            time.sleep(SETTLE_S)  # of two that saw the folder free, the one that wrote last has it
            if (winner := _read_lease(path)) != lease:
                raise RunFolderError(_held_by(folder, winner))
        try:
            with _renewing(folder, descriptor, lease, lost):
                yield
        finally:
            with contextlib.suppress(OSError):  # whatever was in the block has ended by now
                _write(descriptor, GIVEN_BACK)
    finally:
        _leases_held.discard(descriptor)
        os.close(descriptor)


def holder(folder: Path) -> dict[str, Any] | None:
    """Who trains into the folder now, as far as one look tells; neither takes nor disturbs the lock.

    Returns host, pid, started and since, and as `renewed` the Unix time at which the holder last showed itself.
    None when nobody holds it, when the process is of this host and gone, and when it is of another host and has
    not renewed its lease for longer than clocks may differ.
    """
    path = folder / LEASE
    holder = _read_lease(path)
    try:
        status = path.stat()
    except OSError:
        return None
    if not holder or holder.get("inode", status.st_ino) != status.st_ino:
        return None
    if holder.get("host") == socket.gethostname():
        alive = _lives_here(holder)
    else:
        alive = time.time() - status.st_mtime <= LEASE_LASTS_S + CLOCKS_DIFFER_S
    return {**holder, "renewed": status.st_mtime} if alive else None


def this_process() -> dict[str, Any]:
    """What tells this process from all others, later ones with its number included."""
    return {"host": socket.gethostname(), "pid": os.getpid(), "started": _start_time(os.getpid())}


def unwritable(name: str, folder: Path, error: OSError) -> str:
    """The error of a folder that cannot be used."""
    return (
        f"{name} ({folder}) must be a folder that can be written: {error.strerror or error}; "
        "choose another with --runs_dir"
    )


def _open(folder: Path) -> tuple[int, bool | None]:
    """The lease at its path, and what `_lock_file` says of it; the descriptor is in `_leases_held`."""
    path = folder / LEASE
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK, 0o644)
        except OSError as error:
            raise RunFolderError(unwritable("run folder", folder, error)) from error
        _leases_held.add(descriptor)
        locked = _lock_file(descriptor)
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            _leases_held.discard(descriptor)
            os.close(descriptor)
            raise RunFolderError(f"{LEASE} ({path}) must be a regular file; move away what is in its place")
        with contextlib.suppress(OSError):
            if os.path.samestat(status, path.stat()):
                return descriptor, locked
        _leases_held.discard(descriptor)  # replaced between the two lines above: what is there now counts
        os.close(descriptor)


def _write(descriptor: int, data: bytes) -> None:
    os.pwrite(descriptor, data, 0)
    os.ftruncate(descriptor, len(data))


def _content(descriptor: int) -> bytes:
    return os.pread(descriptor, _MOST_BYTES, 0)


def _held_by(folder: Path, holder: dict[str, Any]) -> str:
    since = holder.get("since")
    when = (
        time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(since))
        if since is not None and abs(since) < 1e11
        else "unknown"
    )
    return (
        f"run folder ({folder}) must have one trainer at a time: process {holder.get('pid', '?')} on "
        f"{holder.get('host', '?')} holds it since {when}; wait for it, stop it, or choose another --name"
    )


def _lock_file(descriptor: int) -> bool | None:
    """Take the file's lock: whether it was free, or None where the file system has no locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return False if error.errno in (errno.EWOULDBLOCK, errno.EACCES) else None
    return True


class Lease(TypedDict, total=False):
    """Who holds a run: the content of lease.json."""

    host: str
    pid: int
    started: float | None
    since: float
    inode: int


def _read_lease(path: Path) -> dict[str, Any]:
    """The object in a lease; empty when it is missing or damaged."""
    try:
        return dict(read_json(path, Lease, most_bytes=_MOST_BYTES))
    except JSONError:
        return {}


def _parsed(content: bytes) -> dict[str, Any]:
    try:
        return dict(parse_json(content, Lease))
    except JSONError:
        return {}


def _is_copied(holder: Mapping[str, Any], descriptor: int) -> bool:
    """Whether a lease was written in another folder, of which this one is a copy; leases of old name no inode."""
    inode = os.fstat(descriptor).st_ino
    return bool(holder.get("inode", inode) != inode)


def _holds(path: Path, descriptor: int, holder: dict[str, Any]) -> bool:
    """Whether a lease still counts, for file systems whose locks are missing or seen by one host only."""
    if not holder:
        return False
    if holder.get("host") == socket.gethostname():
        return not _is_copied(holder, descriptor) and _lives_here(holder)
    # whether or not it seems a copy: some file systems number their files differently on each host
    return _is_renewed(path, holder)


def _lives_here(holder: Mapping[str, Any]) -> bool:
    """Whether the process that wrote a lease on this host still lives."""
    try:
        pid, since = int(holder.get("pid", 0)), float(holder.get("started") or 0)
    except (TypeError, ValueError):
        return False
    started = _start_time(pid)
    return started is not None and abs(started - since) < 1.0


def _is_renewed(path: Path, holder: dict[str, Any]) -> bool:
    """Watch the lease of another host for as long as it may take to be renewed. Needs no clock in common with it."""
    before = path.stat().st_mtime_ns
    if time.time() - before / 1e9 > LEASE_LASTS_S + CLOCKS_DIFFER_S:
        return False
    logger.info(
        "watching for %g s whether process %s on %s still renews its lease",
        LEASE_LASTS_S,
        holder.get("pid"),
        holder.get("host"),
    )
    deadline = time.monotonic() + LEASE_LASTS_S
    while time.monotonic() < deadline:
        if path.stat().st_mtime_ns != before:
            return True
        time.sleep(0.1)
    return False


def _wait_for(folder: Path, last: Mapping[str, Any]) -> None:
    """Let a trainer whose lease is missing see that, and end.

    Raises:
        RunFolderError: It is of this host and lives on.
    """
    here = last.get("host") == socket.gethostname()
    if here and (last.get("pid") == os.getpid() or not _lives_here(last)):
        return
    who = f"process {last.get('pid', '?')} on {last.get('host', '?')}"
    logger.warning(
        "%s in %s is missing, and %s may train there still: waiting up to %g s for its end",
        LEASE, folder, who, LEASE_LASTS_S,
    )  # fmt: skip
    deadline = time.monotonic() + LEASE_LASTS_S
    while time.monotonic() < deadline:
        if here and not _lives_here(last):
            return
        time.sleep(0.1)
    if here:
        raise RunFolderError(
            f"run folder ({folder}) must have one trainer at a time: {who} trains there, although {LEASE} was removed; "
            "stop it, or choose another --name"
        )


@contextmanager
def _renewing(folder: Path, descriptor: int, lease: dict[str, Any], lost: Lost | None) -> Iterator[None]:
    """Touch the lease now and then, so that other hosts see that its holder lives; and see that it is still there."""
    ended = threading.Event()

    def renew() -> None:
        while not ended.wait(LEASE_RENEWED_S):
            with contextlib.suppress(OSError):
                os.utime(descriptor)
            if problem := _problem(folder, descriptor, lease):
                end_now(RunFolderError.exit_code, partial((lost or _say), RunFolderError(problem)))

    thread = threading.Thread(target=renew, name="modlib-lease", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _say(error: RunFolderError) -> None:
    logger.error("%s", error)


def _problem(folder: Path, descriptor: int, lease: dict[str, Any]) -> str:
    """What happened to the lease that this process holds; "" while it is in its place."""
    path = folder / LEASE
    ends = "; this process ends now, and what was not saved yet is lost"
    try:
        # opened, since a file server is asked then; what `stat` says may be a minute old
        found = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ESTALE):
            return ""  # the disk has a bad moment; the next renewal looks again
        if folder.is_dir():
            return f"{LEASE} ({path}) must stay while a run trains, but was removed{ends}: repeat the command"
        return f"run folder ({folder}) must stay in its place while a run trains, but {_where_to(descriptor)}"
    try:
        in_place = os.path.samestat(os.fstat(found), os.fstat(descriptor))
        content = _parsed(_content(found))
    except OSError:
        return ""
    finally:
        os.close(found)
    if in_place and not content:  # somebody emptied it
        with contextlib.suppress(OSError):
            _write(descriptor, json.dumps(lease).encode())
        return ""
    if in_place and content == lease:
        return ""
    who = f"process {content['pid']} on {content.get('host', '?')}" if "pid" in content else "another process"
    return f"run folder ({folder}) must have one trainer at a time, but was taken over by {who}{ends}"


def _where_to(descriptor: int) -> str:
    """What became of a folder, by the lease that was opened in it."""
    try:
        now = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        moved = now.name == LEASE and os.path.samestat(now.stat(), os.fstat(descriptor))
    except OSError:
        moved = False
    if not moved:
        return "was removed; this process ends now, and nothing is left of the run: repeat the command to start it anew"
    return (
        f"was moved to {now.parent}; this process ends now, and what was not saved yet is lost: continue with modlib "
        f"resume {shlex.quote(str(now.parent))}, or move it back and repeat the command"
    )


def _start_time(pid: int) -> float | None:
    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else process.create_time()
    except (psutil.Error, ValueError):
        return None


_leases_held: set[int] = set()


def _let_go_in_child() -> None:
    """A forked data worker that outlives its trainer must not keep the run locked."""
    while _leases_held:
        with contextlib.suppress(OSError):
            os.close(_leases_held.pop())


os.register_at_fork(after_in_child=_let_go_in_child)
