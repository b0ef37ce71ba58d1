"""The end of a process whose main thread cannot come back, or must not: last words, the terminal, the exit code."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable
from typing import NoReturn

LAST_WORDS_S = 2.0  # they write to a disk and a terminal that may hang
TERMINAL_S = 0.5
_SHOW_CURSOR = b"\x1b[?25h\r\n"


def end_now(code: int, speak: Callable[[], object], within_s: float = LAST_WORDS_S) -> NoReturn:
    """End this process from any of its threads; nothing that it holds is released in order.

    Args:
        code: The exit code.
        speak: Says why, and puts it on record.
        within_s: Longest time that may take.
    """
    for last, longest_s in ((speak, within_s), (give_terminal_back, TERMINAL_S)):
        thread = threading.Thread(target=last, name="modlib-last-words", daemon=True)
        thread.start()
        thread.join(longest_s)
    os._exit(code)


def give_terminal_back() -> None:
    """Show the cursor, which a progress line hides, on a new line: what draws that line does not get to its end."""
    with contextlib.suppress(OSError):
        if os.isatty(2):
            os.write(2, _SHOW_CURSOR)
