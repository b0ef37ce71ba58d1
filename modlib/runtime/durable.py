"""File operations that survive a crash: what returned is on the disk.

Every operation here that changes the disk first passes the fault point `fs.operation`, so a test can record the order
of a save's operations or end the process between any two of them.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import secrets
from pathlib import Path

from modlib.runtime import faults

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2

DIRECT_ALIGNMENT = 4096


def make_directory(path: Path) -> None:
    """Create one new directory; its parent must exist."""
    faults.point("fs.operation", f"mkdir {path}")
    path.mkdir()


def create_file(path: Path, direct: bool = False) -> int:
    """Create a new file for writing and return its descriptor; an existing file or link is an error, never followed.

    Args:
        path: The file.
        direct: Write past the page cache where the file system can: buffers, sizes and offsets must then be multiples
            of DIRECT_ALIGNMENT.
    """
    faults.point("fs.operation", f"create {path}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(path, flags, 0o644)
    if direct:
        set_direct(descriptor, True)
    return descriptor


def set_direct(descriptor: int, direct: bool) -> None:
    """Write past the page cache from now on, or through it; stays as it is where the file system cannot."""
    flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
    with contextlib.suppress(OSError):
        fcntl.fcntl(descriptor, fcntl.F_SETFL, flags | os.O_DIRECT if direct else flags & ~os.O_DIRECT)


def write_all(descriptor: int, data: memoryview, offset: int, path: Path) -> None:
    """Write all bytes at an offset, however few the system takes at a time."""
    faults.point("fs.operation", f"write {path}")
    while data.nbytes:
        try:
            written = os.pwrite(descriptor, data, offset)
        except OSError as error:
            if error.errno != errno.EINVAL or not fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_DIRECT:
                raise
            set_direct(descriptor, False)  # an offset or size this file system does not write directly
            continue
        data = data[written:]
        offset += written


def fsync_file(descriptor: int, path: Path) -> None:
    """Wait until a file's bytes are on the disk."""
    faults.point("fs.operation", f"fsync {path}")
    os.fsync(descriptor)


def fsync_directory(path: Path | str) -> None:
    """Wait until a directory's entries (created, renamed, removed names) are on the disk."""
    faults.point("fs.operation", f"fsync {path}")
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_new_file(path: Path, data: bytes) -> None:
    """Create a file with these bytes and wait until they are on the disk; the directory is not synchronised."""
    descriptor = create_file(path)
    try:
        write_all(descriptor, memoryview(data), 0, path)
        fsync_file(descriptor, path)
    finally:
        os.close(descriptor)


def rename(source: Path, target: Path) -> None:
    """Rename within a directory; the caller synchronises the directory."""
    faults.point("fs.operation", f"rename {source} {target}")
    os.rename(source, target)


def exchange(first: Path, second: Path) -> bool:
    """Swap two directory entries in one atomic step; False where the file system cannot.

    Source: renameat2(2), RENAME_EXCHANGE.
    """
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        return False
    faults.point("fs.operation", f"exchange {first} {second}")
    if renameat2(_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _RENAME_EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP):
        return False
    raise OSError(number, os.strerror(number), str(first), None, str(second))


def remove_tree(path: Path) -> None:
    """Remove a directory and what is in it; links are removed, never followed."""
    for folder, directories, files, folder_descriptor in os.fwalk(path, topdown=False, follow_symlinks=False):
        for name in files:
            faults.point("fs.operation", f"unlink {os.path.join(folder, name)}")
            os.unlink(name, dir_fd=folder_descriptor)
        for name in directories:
            faults.point("fs.operation", f"rmdir {os.path.join(folder, name)}")
            if os.path.islink(os.path.join(folder, name)):
                os.unlink(name, dir_fd=folder_descriptor)
            else:
                os.rmdir(name, dir_fd=folder_descriptor)
    faults.point("fs.operation", f"rmdir {path}")
    os.rmdir(path)


def atomic_write_text(path: Path | str, text: str) -> None:
    """Replace a file's whole content: after a crash it is the old text or the new one, never a part.

    Args:
        path: The file; its directory must exist.
        text: The new content, written as UTF-8.
    """
    atomic_write_bytes(path, text.encode())


def atomic_write_bytes(path: Path | str, data: bytes) -> None:
    """Replace a file's whole content by these bytes, as `atomic_write_text` does."""
    path = Path(path)
    aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        write_new_file(aside, data)
        rename(aside, path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    fsync_directory(path.parent)
