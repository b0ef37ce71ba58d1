"""A file that only ever grows by whole records; what cannot be written waits for room."""

from __future__ import annotations

import os
from collections import deque
from pathlib import Path

from modlib.runtime import faults


class GrowingFile:
    """Appends records to a file, each whole or not at all.

    A record that cannot be written, e.g. on a full disk, stays in memory with those behind it and is tried again at
    the next `write`, so that nothing is lost or out of order when there is space again.

    Args:
        path: The file; its folder must exist when something is written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.waiting: deque[bytes] = deque()
        self._descriptor: int | None = None
        self._size = 0
        self._since_sync = 0  # records that were written since
        self._sync_failed = False

    @property
    def lost(self) -> int:
        """Records that are not known to be on the disk, though that was tried."""
        return len(self.waiting) + (self._since_sync if self._sync_failed else 0)

    def write(self, record: bytes = b"") -> None:
        """Hand everything that waits, and this record, to the system; it survives the death of the process then.

        Raises:
            OSError: Something could not be written; it waits.
        """
        if record:
            self.waiting.append(record)
        if not self.waiting:
            return
        if self._descriptor is None:
            self._descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
            self._size = os.fstat(self._descriptor).st_size
        while self.waiting:
            record = self.waiting[0]
            try:
                faults.point("fs.operation", f"write {self.path}")
                written = os.write(self._descriptor, record)
                if written < len(record):
                    raise OSError(f"only {written} of {len(record)} bytes could be written to {self.path}")
            except OSError:
                self._drop_partial_record()
                raise
            self._size += len(record)
            self._since_sync += 1
            self.waiting.popleft()

    def sync(self) -> None:
        """Write what waits and force the file to disk."""
        self.write()
        if self._descriptor is not None:
            self._sync_failed = True
            faults.point("fs.operation", f"fsync {self.path}")
            os.fsync(self._descriptor)
            self._sync_failed, self._since_sync = False, 0

    def close(self) -> None:
        """Sync, and let go of the file."""
        try:
            self.sync()
        finally:
            self.release()

    def release(self) -> None:
        """Let go of the file as it is; the next write opens it again."""
        if self._descriptor is not None:
            descriptor, self._descriptor = self._descriptor, None
            os.close(descriptor)

    def _drop_partial_record(self) -> None:
        assert self._descriptor is not None
        if os.fstat(self._descriptor).st_size > self._size:
            os.ftruncate(self._descriptor, self._size)
