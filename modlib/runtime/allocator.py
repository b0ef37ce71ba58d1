"""glibc's allocator, told to keep freed memory: training frees and takes the same large blocks at every step."""

from __future__ import annotations

import ctypes

M_TRIM_THRESHOLD = -1
M_MMAP_THRESHOLD = -3
KEEP_BYTES = 1 << 30  # glibc takes an int; blocks below this come from the heap and stay mapped


def keep_freed_memory() -> bool:
    """Raise malloc's mmap and trim thresholds to 1 GiB; returns False where the C library is not glibc."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    return bool(mallopt(M_MMAP_THRESHOLD, KEEP_BYTES)) and bool(mallopt(M_TRIM_THRESHOLD, KEEP_BYTES))
