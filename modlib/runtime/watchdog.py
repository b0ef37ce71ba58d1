"""A rank that makes no progress ends by itself, after all ranks have written where they stand.

The main thread says what it begins; a thread of its own watches that something else begins in time. It sees a main
thread that waits for another rank, for a disk or for ever, as long as that lets other threads run.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import TracebackType

from modlib.runtime.errors import EXIT_HANG, HangError
from modlib.runtime.hard_exit import end_now

logger = logging.getLogger("modlib")

UNHURRIED = 6
"""How many times the limit of a step whatever is no step may take: the start, an evaluation, a checkpoint."""
_LOOKS = 50  # per limit
_LONGEST_LOOK_S = 5.0
_WAIT_S = 15.0  # at least so long for the other ranks' stacks
_LAST_WORDS_S = 10.0  # how long writing stacks and the error may take: the disk may be what hangs
_HEADER = re.compile(r"rank (\d+) on (\S*) was (.*) for \S+ s$", re.MULTILINE)


@dataclass(frozen=True)
class _Doing:
    what: str
    limit_s: float


class Watchdog:
    """Ends this process with exit code 6 when what it does takes too long; use as a context manager.

    First the stacks of all threads go to a file per rank in one folder. The other ranks see within a few seconds that
    one has written, and write theirs, whatever their own limits are. It waits for them, for a tenth of its limit or
    longer, before it ends, so that the error says who was doing what. A host of which no rank wrote anything is blamed.

    Time during which this process was stopped, as a suspended job is, or was looked at in a debugger does not count.

    Args:
        limit_s: Seconds that a step may take; everything else UNHURRIED times as many. None: there is no limit.
        stacks_path: Called with a rank; where its stacks are written.
        rank: This rank.
        hosts: The host of each rank, in rank order.
        ended: Called with the error right before this process ends; to put it on record.
    """

    def __init__(
        self,
        limit_s: float | None = None,
        *,
        stacks_path: Callable[[int], Path] | None = None,
        rank: int = 0,
        hosts: Sequence[str] = ("",),
        ended: Callable[[HangError], object] | None = None,
    ) -> None:
        self.limit_s = limit_s
        self._stacks_path, self._rank, self._hosts, self._ended = stacks_path, rank, tuple(hosts), ended
        self._doing = _Doing("starting", UNHURRIED * (limit_s or 0.0))
        self._wait_s = max((limit_s or 0.0) / 10, _WAIT_S)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="modlib-watchdog", daemon=True)

    def doing(self, what: str, times: int = 1) -> None:
        """Say what begins now, and that what was before has ended.

        Args:
            what: As in "the rank was ...".
            times: How many limits it may take.
        """
        if self.limit_s is not None:
            self._doing = _Doing(what, times * self.limit_s)

    def alive(self) -> None:
        """Say that what was begun last goes on well: its limit begins anew."""
        self._doing = replace(self._doing)

    def __enter__(self) -> Watchdog:
        if self.limit_s is not None:
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._over.set()
        if self._thread.is_alive():
            self._thread.join()

    def _watch(self) -> None:
        assert self.limit_s is not None
        look_s = min(self.limit_s / _LOOKS, _LONGEST_LOOK_S)
        seen, taken, before = self._doing, 0.0, time.monotonic()
        has_written = False
        while not self._over.wait(look_s):
            now = time.monotonic()
            passed, before = now - before, now
            if self._doing is not seen:
                seen, taken = self._doing, 0.0
                continue
            if _is_debugged():
                continue
            taken += min(passed, 2 * look_s)  # longer only when this process was stopped
            if taken >= seen.limit_s:
                self._end(seen)
            if not has_written and self._another_hangs():
                has_written = True
                self._write_stacks(seen, taken)

    def _another_hangs(self) -> bool:
        assert self._stacks_path is not None
        folder = self._stacks_path(self._rank).parent
        return len(self._hosts) > 1 and folder.is_dir() and bool(_found(self._stacks_path, len(self._hosts)))

    def _end(self, doing: _Doing) -> None:
        end_now(EXIT_HANG, partial(self._speak, doing), self._wait_s + _LAST_WORDS_S)

    def _speak(self, doing: _Doing) -> None:
        assert self._stacks_path is not None
        logger.error("%s took %g s, which is the limit: writing stacks and ending", doing.what, doing.limit_s)
        self._write_stacks(doing, doing.limit_s)
        found = {self._rank: doing.what}
        if len(self._hosts) > 1:
            self._report(doing, found, all_said=False)  # in case that this process is ended before it can say more
            deadline = time.monotonic() + self._wait_s
            while len(found) < len(self._hosts) and time.monotonic() < deadline:
                time.sleep(0.25)
                found |= _found(self._stacks_path, len(self._hosts))
        self._report(doing, found, all_said=True)

    def _write_stacks(self, doing: _Doing, taken: float) -> None:
        assert self._stacks_path is not None
        header = f"rank {self._rank} on {self._hosts[self._rank]} was {doing.what} for {taken:g} s"
        try:
            write_stacks(self._stacks_path(self._rank), header)
        except OSError as error:
            logger.error("stacks cannot be written to %s: %s", self._stacks_path(self._rank), error.strerror)

    def _report(self, doing: _Doing, found: Mapping[int, str], *, all_said: bool) -> None:
        assert self._stacks_path is not None
        if self._ended is not None:
            folder = self._stacks_path(self._rank).parent
            self._ended(hang_error(found, self._hosts, doing.limit_s, folder, all_said=all_said))


def _is_debugged() -> bool:
    """Whether the main thread is in a debugger, where somebody thinks."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    while frame is not None:
        if Path(frame.f_code.co_filename).name in ("bdb.py", "pdb.py", "pydevd.py"):
            return True
        frame = frame.f_back
    return False


def write_stacks(path: Path, header: str = "") -> None:
    """Append the stacks of all threads to a file, below a header, and wait for the disk."""
    path.parent.mkdir(exist_ok=True)  # in an attempt that is there, or was taken away with its run
    with open(path, "a") as file:
        if header:
            file.write(f"{header}\n")
            file.flush()
        faulthandler.dump_traceback(file=file, all_threads=True)
        os.fsync(file.fileno())


def hang_error(
    found: Mapping[int, str], hosts: Sequence[str], limit_s: float, folder: Path, *, all_said: bool = True
) -> HangError:
    """What is said of a hang.

    Args:
        found: What each rank was doing that wrote so.
        hosts: The host of each rank, in rank order.
        limit_s: How long that was allowed.
        folder: Where the stacks are.
        all_said: Whether ranks that are not found had the time to say what they did.
    """
    ranks_of: dict[str, list[int]] = {}
    for rank, what in sorted(found.items()):
        ranks_of.setdefault(what, []).append(rank)
    fewest_first = sorted(ranks_of.items(), key=lambda item: len(item[1]))
    parts = [f"{_who(ranks, hosts)} {'was' if len(ranks) == 1 else 'were'} {what}" for what, ranks in fewest_first]
    missing = [rank for rank in range(len(hosts)) if rank not in found and all_said]
    if missing:
        parts.insert(0, f"{_who(missing, hosts)} wrote no stacks, as if frozen or gone")
    blamed = {hosts[rank] for rank in missing} - {hosts[rank] for rank in found} - {""}
    if len(blamed) > len({hosts[rank] for rank in found}):  # then it is more likely what all have in common
        blamed = set()
    return HangError(
        f"no progress for {limit_s:g} s: {'; '.join(parts)}. Stacks: {folder}. If this may take so long, raise "
        "train.hang_limit_s",
        sorted(blamed),
    )


def _who(ranks: Sequence[int], hosts: Sequence[str]) -> str:
    named = sorted({hosts[rank] for rank in ranks} - {""})
    where = f" ({', '.join(named)})" if named and len(hosts) > 1 else ""
    return f"rank {', '.join(map(str, ranks))}{where}"


def _found(stacks_path: Callable[[int], Path], size: int) -> dict[int, str]:
    """What each rank was doing that wrote so."""
    found = {}
    for rank in range(size):
        try:
            written = _HEADER.search(stacks_path(rank).read_text(errors="replace"))
        except OSError:
            continue
        if written:
            found[rank] = written[3]
    return found
