"""How a directory becomes a checkpoint, and how it stops being one: single renames, each survived by a crash.

A new checkpoint is written into `.tmp-step-...` and renamed to `step-...` when every byte is on the disk. Where that
step exists already, the two directories swap names in one step; on a file system that cannot swap, the old one is set
aside as `.replaced-step-...` first, and `recover` brings it back if the process dies in between. An old checkpoint is
renamed to `.trash-step-...` before its files are removed, so nothing half deleted ever looks like a checkpoint.
"""

from __future__ import annotations

import errno
import logging
import os
import secrets
from pathlib import Path

from modlib.checkpointing.names import aside_folders, aside_name, step_name
from modlib.runtime import durable, faults
from modlib.runtime.errors import CheckpointError

LOGGER = logging.getLogger("modlib")


def commit(aside: Path, step: int) -> Path:
    """Turn a finished directory into the checkpoint of its step and return its new path.

    Args:
        aside: Complete and synchronised, in the checkpoints folder.
        step: Whose checkpoint it becomes; an existing checkpoint of that step is replaced.
    """
    folder = aside.parent
    target = folder / step_name(step)
    faults.point("ckpt.before_commit", str(target))
    old: Path | None = None
    if not os.path.lexists(target):
        durable.rename(aside, target)
    elif target.is_symlink() or not target.is_dir():
        raise CheckpointError(f"{target} must be a checkpoint or not exist; a file or link of that name is in the way")
    elif durable.exchange(aside, target):
        old = aside
    else:
        old = folder / aside_name("replaced", step)
        durable.rename(target, old)
        durable.rename(aside, target)
    durable.fsync_directory(folder)
    faults.point("ckpt.after_commit", str(target))
    if old is not None:
        delete(old, step)
    return target


def delete(path: Path, step: int) -> None:
    """Remove a checkpoint or a leftover: it loses its name at once, its files one by one.

    A failure to remove files is logged only; the leftover is cleaned at the next start.
    """
    trash = path.parent / aside_name("trash", step)
    durable.rename(path, trash)
    _remove(trash)


def recover(folder: Path) -> None:
    """Give a checkpoint its name back if the process died while another was taking its place."""
    for step, path in aside_folders(folder, "replaced"):
        target = folder / step_name(step)
        try:
            if not os.path.lexists(target):
                durable.rename(path, target)
                durable.fsync_directory(folder)
                LOGGER.warning(
                    "checkpoint %s was being replaced when the process ended; the old one is back", target.name
                )
        except OSError as error:
            LOGGER.warning("checkpoint %s could not be brought back from %s: %s", target.name, path.name, error)


def clean(folder: Path) -> None:
    """Remove what interrupted saves and deletions left behind. Only one process may use the folder meanwhile."""
    recover(folder)
    for kind in ("tmp", "trash", "replaced"):
        for _, path in aside_folders(folder, kind):
            _remove(path)


def preflight(folder: Path | str, needed_bytes: int) -> None:
    """Find out before training whether checkpoints can be written into a folder; creates the folder.

    Args:
        folder: The checkpoints folder.
        needed_bytes: Bytes that all checkpoints to be kept will take at once.

    Raises:
        CheckpointError: It cannot be written to, or the disk has too little space.
    """
    folder = Path(folder)
    probe = folder / f".probe.{secrets.token_hex(4)}"
    renamed = probe.with_suffix(".renamed")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            durable.write_new_file(probe, b"modlib")
            durable.rename(probe, renamed)
            durable.fsync_directory(folder)
        finally:
            probe.unlink(missing_ok=True)
            renamed.unlink(missing_ok=True)
    except OSError as error:
        raise write_error(folder, error) from error
    require_space(folder, needed_bytes)


def require_space(folder: Path, needed_bytes: int) -> None:
    """Refuse when the disk has less free space than needed, in bytes.

    Raises:
        CheckpointError: Naming both numbers.
    """
    free = free_bytes(folder)
    if free < needed_bytes:
        raise CheckpointError(
            f"free space ({free} bytes, {free / 2**30:.2f} GiB) in {folder} must be at least what checkpoints need "
            f"({needed_bytes} bytes, {needed_bytes / 2**30:.2f} GiB); free some, or keep fewer checkpoints"
        )


def free_bytes(folder: Path) -> int:
    """Bytes an ordinary user can still write to the folder's disk."""
    status = os.statvfs(folder)
    return status.f_bavail * status.f_frsize


def write_error(path: Path, error: OSError, needed_bytes: int | None = None) -> CheckpointError:
    """An error of the file system as one a user can act on."""
    remedies = {
        errno.ENOSPC: "the disk is full; free some space, or keep fewer checkpoints",
        errno.EDQUOT: "the quota is used up; free some space, or keep fewer checkpoints",
        errno.EFBIG: "a file may not grow that large; raise the file size limit (ulimit -f)",
        errno.EROFS: "the file system is read-only; use another runs_dir",
        errno.EACCES: "there is no permission to write there; use another runs_dir",
        errno.EPERM: "there is no permission to write there; use another runs_dir",
    }
    reason = remedies.get(error.errno or 0, "see the system's message; earlier checkpoints are untouched")
    size = ""
    if needed_bytes is not None and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        size = f" (needs {needed_bytes} bytes, {free_bytes(path.parent)} are free)"
    return CheckpointError(f"checkpoint {path} cannot be written{size}: {error.strerror or error}; {reason}")


def _remove(path: Path) -> None:
    try:
        faults.point("ckpt.delete", str(path))
        durable.remove_tree(path)
    except OSError as error:
        LOGGER.warning("leftover %s could not be removed: %s", path, error)
