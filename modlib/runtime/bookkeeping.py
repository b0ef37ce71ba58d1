"""Bookkeeping: what a run writes about itself beside its checkpoints. A write that fails costs a warning, not the run.

run.json, exit.json, log files and metrics are worth less than the training that they tell of. So each of these writes
passes `write_or_warn`: it warns once of each kind, counts, and `losses` says at the end what is missing on disk.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

logger = logging.getLogger("modlib")


@dataclass
class _Loss:
    """Writes of one kind that failed, and why the last of them did."""

    writes: int
    reason: str


_losses: dict[str, _Loss] = {}
_lock = threading.Lock()


@contextmanager
def write_or_warn(what: str) -> Iterator[None]:
    """Turn a failure to write into one warning per kind, and count it; only the file system's errors are meant.

    Args:
        what: The kind, such as "run.json": it begins the warning.
    """
    try:
        yield
    except OSError as error:
        note(what, error)


def note(what: str, error: OSError) -> None:
    """Count a write that failed, and warn of the first of its kind."""
    reason = error.strerror or str(error)
    with _lock:
        first = what not in _losses
        loss = _losses.setdefault(what, _Loss(0, reason))
        loss.writes += 1
        loss.reason = reason
    if first:
        logger.warning("%s could not be written (%s); that ends nothing, and is counted from here on", what, reason)


def made_good(what: str) -> None:
    """Nothing of this kind is missing any more: a later write brought what an earlier one could not."""
    with _lock:
        _losses.pop(what, None)


def losses() -> list[str]:
    """What could not be written since `begin`, a line each; for the end of a run."""
    with _lock:
        return [
            f"{what}: {loss.writes} {'write' if loss.writes == 1 else 'writes'} failed ({loss.reason})"
            for what, loss in _losses.items()
        ]


def begin() -> None:
    """Forget earlier losses: another attempt begins in this process."""
    with _lock:
        _losses.clear()
