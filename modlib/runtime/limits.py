"""Limits of the machine and of the process, as errors that say which one was met and what to do."""

from __future__ import annotations

import errno
import re
import resource

from modlib.runtime.errors import ModlibError, RunFolderError
from modlib.runtime.units import format_bytes

_FULL = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some of your quota",
    errno.EROFS: "have the file system mounted for writing",
    errno.EFBIG: "raise the limit of a file's size (ulimit -f)",
    errno.EIO: "look at the disk",
}
_MEMORY = re.compile("can't allocate memory|Cannot allocate memory|failed to map segment|std::bad_alloc", re.IGNORECASE)
_GPU_MEMORY = re.compile("CUDA out of memory|CUDA error: out of memory", re.IGNORECASE)
_THREADS = re.compile("can't start new thread|Resource temporarily unavailable", re.IGNORECASE)
_FILES = re.compile("Too many open files", re.IGNORECASE)


class LimitError(ModlibError, RuntimeError):
    """Memory, threads or open files ran out."""


def as_limit(error: BaseException) -> ModlibError | None:
    """What an error of Python or a library means where it met a limit; None where it met none.

    A disk that cannot be written gives a RunFolderError, everything else a LimitError.
    """
    if isinstance(error, ModlibError) or not isinstance(error, Exception):
        return None
    text = str(error)
    if isinstance(error, OSError) and error.errno in _FULL:
        name = f" ({error.filename})" if error.filename else ""
        return RunFolderError(
            f"disk{name} must take what a run writes: {error.strerror}; {_FULL[error.errno]}, then the same command "
            "continues"
        )
    if (isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE)) or _met(error, _FILES):
        return LimitError(
            f"open files (limit {_limit(resource.RLIMIT_NOFILE)}) must suffice for the run; raise it (ulimit -n 4096)"
        )
    if _met(error, _GPU_MEMORY):
        return LimitError(
            f"memory of the GPU must suffice for the run: {text.splitlines()[0]}; set a smaller MICRO_BATCH_SIZE"
        )
    if isinstance(error, MemoryError) or _met(error, _MEMORY) or getattr(error, "errno", None) == errno.ENOMEM:
        limit = _limit(resource.RLIMIT_AS, in_bytes=True)
        told = f"; {text.splitlines()[0]}" if text else ""
        return LimitError(
            f"memory (limit of the process {limit}) must suffice for the run{told}; raise it with ulimit -v, or set a "
            "smaller MICRO_BATCH_SIZE"
        )
    if _met(error, _THREADS) or getattr(error, "errno", None) == errno.EAGAIN:
        return LimitError(
            f"threads and processes (limit {_limit(resource.RLIMIT_NPROC)}) must suffice for the run, and its memory "
            f"(limit {_limit(resource.RLIMIT_AS, in_bytes=True)}) for their stacks; raise them with ulimit -u and -v"
        )
    return None


def _met(error: Exception, pattern: re.Pattern[str]) -> bool:
    return isinstance(error, (RuntimeError, ImportError)) and pattern.search(str(error)) is not None


def _limit(number: int, *, in_bytes: bool = False) -> str:
    soft, _ = resource.getrlimit(number)
    if soft == resource.RLIM_INFINITY:
        return "none"
    return format_bytes(soft) if in_bytes else str(soft)
