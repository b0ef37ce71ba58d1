"""Bytes of one file into another one inside the kernel, without passing this process's memory."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass

_NOT_HERE = (errno.EINVAL, errno.ENOSYS, errno.ENOTSOCK, errno.EOPNOTSUPP)
_PIECE = 16 << 20


@dataclass(frozen=True)
class FileSpan:
    """Bytes of an open file.

    Args:
        descriptor: Open for reading as long as the span is used.
        offset: Of the first byte.
        length: Number of bytes.
    """

    descriptor: int
    offset: int
    length: int


def append_span(target: int, span: FileSpan) -> None:
    """Write a span's bytes where the file `target` is at.

    Args:
        target: Descriptor, open for writing.
        span: Of another file.

    Raises:
        OSError: It cannot be read or written, or ends before.
    """
    done = 0
    in_kernel = True
    while done < span.length:
        count = min(span.length - done, 1 << 30)
        if in_kernel:
            try:
                moved = os.sendfile(target, span.descriptor, span.offset + done, count)
            except OSError as error:
                if error.errno not in _NOT_HERE:
                    raise
                in_kernel = False  # a system or file system that cannot
                continue
        else:
            piece = os.pread(span.descriptor, min(count, _PIECE), span.offset + done)
            moved = len(piece)
            rest = memoryview(piece)
            while rest:
                rest = rest[os.write(target, rest) :]
        if not moved:
            raise OSError(errno.EIO, "a file ended while it was read")
        done += moved
