"""A progress bar with speed and ETA on a terminal, a line now and then elsewhere; on stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

from modlib.runtime.units import format_bytes, format_count, format_percent, format_seconds

_LINE_S = 30.0
Update = Callable[..., None]
"""Called with the amount done, that in all (0: unknown), and, where there is more to say, a note."""
Unit = Literal["bytes", "tokens", "documents"]


@contextmanager
def progress_bar(title: str, unit: Unit = "bytes") -> Iterator[Update]:
    """Show how far something is.

    Args:
        title: What is done.
        unit: What is counted.
    """
    if not sys.stderr.isatty():
        yield _Lines(title, unit)
        return
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    from modlib.runtime.console import PlainConsole

    title_column, amount, eta, more = (
        TextColumn(text, markup=False)
        for text in ("{task.description}", "{task.fields[amount]}", "ETA", "{task.fields[note]}")
    )
    columns = (title_column, BarColumn(), amount, eta, TimeRemainingColumn(), more)
    with Progress(*columns, console=PlainConsole(stderr=True)) as bar:
        task = bar.add_task(title, total=None, amount="", note="")

        def update(done: int, total: int, note: str = "") -> None:
            bar.update(task, completed=done, total=total or None, note=note)
            bar.update(task, amount=_amount(done, total, bar.tasks[0].speed, unit))

        yield update


class _Lines:
    def __init__(self, title: str, unit: Unit) -> None:
        self.title, self.unit = title, unit
        self.started = self.told = time.monotonic()

    def __call__(self, done: int, total: int, note: str = "") -> None:
        now = time.monotonic()
        if now - self.told < _LINE_S or not done or not total:
            return
        self.told = now
        spent = now - self.started
        eta = format_seconds(spent * (total - done) / done)
        amount = _amount(done, total, done / spent, self.unit)
        print(f"{self.title}: {format_percent(done / total)}, {amount}, ETA {eta}, {note}", file=sys.stderr, flush=True)


def _amount(done: int, total: int, speed: float | None, unit: Unit) -> str:
    """Such as "1.2 GiB of 3 GiB, 50 MiB/s" or "1.2M of 3.0M tokens, 512k tokens/s"."""
    number, more = (format_bytes, "") if unit == "bytes" else (format_count, f" {unit}")
    amount = f"{number(done)} of {number(total)}{more}" if total else f"{number(done)}{more}"
    return amount if speed is None else f"{amount}, {number(speed)}{more}/s"
