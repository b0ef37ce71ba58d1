"""A progress bar with speed and ETA on a terminal, a line now and then elsewhere; on stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from modlib.runtime.units import format_bytes, format_percent, format_seconds

_LINE_S = 30.0

Update = Callable[..., None]
"""Called with bytes done, bytes in all (0: unknown), and, where there is more to say, a note."""


@contextmanager
def progress_bar(title: str) -> Iterator[Update]:
    """Show how far something is.

    Args:
        title: What is done.
    """
    if not sys.stderr.isatty():
        yield _Lines(title)
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = [TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn()]
    columns += [TextColumn("ETA"), TimeRemainingColumn(), TextColumn("{task.fields[note]}")]
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(title, total=None, note="")
        yield lambda done, total, note="": bar.update(task, completed=done, total=total or None, note=note)


class _Lines:
    def __init__(self, title: str) -> None:
        self.title = title
        self.started = self.told = time.monotonic()

    def __call__(self, done: int, total: int, note: str = "") -> None:
        now = time.monotonic()
        if now - self.told < _LINE_S or not done or not total:
            return
        self.told = now
        spent = now - self.started
        eta = format_seconds(spent * (total - done) / done)
        speed = f"{format_bytes(done / spent)}/s"
        print(f"{self.title}: {format_percent(done / total)}, {speed}, ETA {eta}, {note}", file=sys.stderr, flush=True)
