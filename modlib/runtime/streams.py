"""Standard streams that training can rely on, whatever the shell did with them."""

from __future__ import annotations

import io
import os
import sys

from modlib.runtime.secrets import mask


class _Unfailing(io.FileIO):
    """A descriptor whose write errors are forgotten: a full disk or a closed terminal behind it."""

    def write(self, data, /) -> int:  # type: ignore[no-untyped-def]
        try:
            return super().write(data)
        except OSError:
            return len(data)


def print_anything() -> None:
    """Let stdout show what its encoding has no bytes for, half of a surrogate pair in a foreign file say, escaped."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


class _Masked(io.TextIOWrapper):
    """A text stream that no secret passes, whoever writes: also a traceback that nobody caught, and warnings."""

    def write(self, text: str, /) -> int:
        super().write(mask(text))
        return len(text)


def secure_streams() -> None:
    """Let no message disturb the run, or hold a secret; call first in a process's entry point.

    Closed standard descriptors are opened on /dev/null: the next file, a checkpoint perhaps, would get their number and
    whatever is printed from C with it. What cannot be written to stderr is dropped.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the least free number, which is this one
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  open for the process's whole life
    encoding = getattr(sys.stderr, "encoding", None) or "utf-8"
    sys.stderr = _Masked(
        io.BufferedWriter(_Unfailing(2, "w", closefd=False)),
        encoding=encoding,
        errors="backslashreplace",
        line_buffering=True,
    )
