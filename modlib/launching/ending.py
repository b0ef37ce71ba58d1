"""How a run of several ranks ended: whose error came first, what to say, which exit code."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from modlib.runtime.errors import EXIT_HANG, EXIT_INTERRUPTED, EXIT_OK, EXIT_PREEMPTED
from modlib.runtime.run_folder import Attempt

MOST_LOG_LINES = 20
MOST_LOG_BYTES = 16 << 10
NO_FAILURE = (None, EXIT_OK, EXIT_PREEMPTED)
# what gloo and NCCL say in a rank whose peer is gone
LOST_PEER = re.compile(
    "Connection (closed|reset) by peer|gloo/transport|Broken pipe|NCCL (communicator|error)|remote process exited"
    "|DistNetworkError|DistBackendError|Socket Timeout",
    re.IGNORECASE,
)

# what a machine says that is broken; the run itself is not to blame
BROKEN_MACHINE = re.compile(
    "uncorrectable ECC|unspecified launch failure|NVLink|GPU is lost|fallen off the bus|Stale file handle"
    "|Input/output error|Bus error",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class RankEnd:
    """How one rank's process ended.

    Args:
        rank: Which.
        code: Exit code, or minus the number of the signal that killed it.
        last_seen_alive: Unix time, at most one look of the launcher before its end.
        by_launcher: The launcher's own signal ended it.
    """

    rank: int
    code: int
    last_seen_alive: float
    by_launcher: bool = False


def ending(
    ends: Sequence[RankEnd], attempt: Attempt, stop_signal: signal.Signals | None, *, interrupted: bool = False
) -> tuple[int, str]:
    """The exit code of the run and what to print last; nothing where the ranks have said it all.

    Args:
        ends: Of all ranks.
        attempt: Where the ranks' logs and records are.
        stop_signal: The signal that this run was told to stop by.
        interrupted: Told twice by SIGINT: everything was killed at once.
    """
    if interrupted:
        return EXIT_INTERRUPTED, "interrupted twice: stopped now, without saving"
    failures = [end for end in ends if _failed(attempt, end)]
    if failures:
        first = min(failures, key=lambda end: _order(attempt, end))
        code = int(_record(attempt, first.rank).get("exit_code", first.code))
        return (code if code > 0 else 1), _failure_text(attempt, first)
    why = "another rank stopped" if stop_signal is None else stop_signal.name
    killed = [end.rank for end in ends if end.code == -signal.SIGKILL]
    if killed:
        return EXIT_PREEMPTED, (
            f"{why}: rank {', '.join(map(str, killed))} did not stop in time and was killed; "
            f"the last saved checkpoint counts (log: {attempt.log_path(killed[0])})"
        )
    if any(end.code == -signal.SIGTERM for end in ends):
        return EXIT_PREEMPTED, f"{why}: stopped before training began; the same command continues"
    return (EXIT_PREEMPTED if any(end.code == EXIT_PREEMPTED for end in ends) else EXIT_OK), ""


@dataclass(frozen=True)
class Failure:
    """The error that ended an attempt first.

    Args:
        text: For the user: whose it was, its log, the error.
        exit_code: Of its class.
        retry: It came from the machines, not from the run: another attempt may succeed.
        hosts: Hosts that it blames.
    """

    text: str
    exit_code: int
    retry: bool
    hosts: tuple[str, ...] = ()


def first_failure(attempt: Attempt) -> Failure | None:
    """The first error that a rank recorded, a lost peer only where no rank has an error of its own."""
    ranks = [int(path.name.split("-")[1].split(".")[0]) for path in attempt.logs_path.glob("rank-*.error.json")]
    records = [
        record
        for rank in ranks
        if (record := _record(attempt, rank)).get("exit_code") not in (None, EXIT_OK, EXIT_PREEMPTED)
    ]
    if not records:
        return None
    first = min(records, key=lambda record: (_lost_peer(record), record.get("time", 0.0)))
    code, hosts = int(first["exit_code"]), tuple(first.get("hosts", ()))
    if not hosts and BROKEN_MACHINE.search(str(first.get("message", ""))):
        hosts = (str(first.get("host", "")),)
    text = _failure_text(attempt, RankEnd(int(first["rank"]), code, 0.0))
    return Failure(text, code, bool(hosts) or code == EXIT_HANG or _lost_peer(first), hosts)


def _failed(attempt: Attempt, end: RankEnd) -> bool:
    """Whether a rank failed by itself: also one that has recorded its error and was killed while it ended."""
    if end.by_launcher:
        return _record(attempt, end.rank).get("exit_code") not in NO_FAILURE
    return end.code not in (EXIT_OK, EXIT_PREEMPTED)


def _order(attempt: Attempt, end: RankEnd) -> tuple[bool, float]:
    record = _record(attempt, end.rank)
    return _lost_peer(record), record.get("time", end.last_seen_alive)


def _lost_peer(record: dict[str, Any]) -> bool:
    """Whether a rank failed because another was gone."""
    return bool(LOST_PEER.search(f"{record.get('type', '')} {record.get('message', '')}"))


def _record(attempt: Attempt, rank: int) -> dict[str, Any]:
    """What a failing rank wrote for the launcher; empty where it had no time to."""
    try:
        content = json.loads(attempt.error_path(rank).read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _failure_text(attempt: Attempt, end: RankEnd) -> str:
    record = _record(attempt, end.rank)
    log = attempt.log_path(end.rank)
    if record:
        text = record.get("traceback") or record.get("message", "")
        return f"rank {end.rank} on {record.get('host', '?')} failed first (log: {log})\n{text}".rstrip()
    if end.code == -signal.SIGKILL:
        how = "was killed by SIGKILL, as the system does when memory runs out"
    elif end.code < 0:
        how = f"was killed by {_signal_name(-end.code)}"
    else:
        how = f"ended with exit code {end.code} and recorded no error"
    lines = _last_lines(attempt, end.rank)
    return "\n".join([f"rank {end.rank} {how} (log: {log})", *(f"    {line}" for line in lines)])


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _last_lines(attempt: Attempt, rank: int) -> list[str]:
    """The end of a rank's log; of rank 0 nothing, which the terminal has shown."""
    if rank == 0:
        return []
    try:
        with open(attempt.log_path(rank), "rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - MOST_LOG_BYTES))
            return file.read().decode(errors="replace").splitlines()[-MOST_LOG_LINES:]
    except OSError:
        return []
