"""How a run of several ranks ended: whose error came first, what to say, which exit code."""

from __future__ import annotations

import re
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from modlib.checkpointing.names import step_folders
from modlib.launching.recent_metrics import RecentMetrics, recent_metrics
from modlib.runtime.errors import (
    EXIT_HANG,
    EXIT_INTERRUPTED,
    EXIT_OK,
    EXIT_PREEMPTED,
    EXIT_STEPS_LOST,
    STOPPED,
    StoppedEarly,
)
from modlib.runtime.json_files import JSONError, read_json
from modlib.runtime.logs import ErrorRecord
from modlib.runtime.run_folder import Attempt, RunFolder

MOST_LOG_LINES = 20
MOST_LOG_BYTES = 16 << 10
NO_FAILURE = (None, EXIT_OK, *STOPPED)
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
    ends: Sequence[RankEnd],
    attempt: Attempt,
    stop_signal: signal.Signals | None,
    *,
    lost: int = 0,
    interrupted: bool = False,
) -> tuple[int, str]:
    """The exit code of the run and what to print last; nothing where the ranks have said it all.

    Args:
        ends: Of all ranks.
        attempt: Where the ranks' logs and records are.
        stop_signal: The signal that this run was told to stop by.
        lost: Steps that were done and are in no checkpoint.
        interrupted: Told twice by SIGINT: everything was killed at once.
    """
    if interrupted:
        return EXIT_INTERRUPTED, "interrupted twice: stopped now, without saving"
    failures = [end for end in ends if _failed(attempt, end)]
    if stop_signal is not None:  # a rank that had stopped already is missed by the others
        failures = [end for end in failures if not _lost_peer(_record(attempt, end.rank))]
    stopped = EXIT_STEPS_LOST if lost else EXIT_PREEMPTED
    left = [end for end in ends if end.code in (EXIT_OK, *STOPPED)] if stop_signal is None else []
    if failures:
        first = min(failures, key=lambda end: _order(attempt, end))
        if left and _lost_peer(_record(attempt, first.rank)):
            culprit = min(left, key=lambda end: end.last_seen_alive)
            text = f"{_left(culprit)}, and the others failed without it (log: {attempt.log_path(culprit.rank)})"
            return stopped if culprit.code in STOPPED else 1, _with_log(text, attempt, culprit.rank)
        code = int(_record(attempt, first.rank).get("exit_code", first.code))
        return (code if code > 0 else 1), _failure_text(attempt, first)
    killed = [end.rank for end in ends if end.code == -signal.SIGKILL]
    if killed:
        why = stop_signal.name if stop_signal is not None else _left(left[0]) if left else "another rank stopped"
        return stopped, (
            f"{why}: rank {', '.join(map(str, killed))} did not stop in time and was killed; "
            f"the last saved checkpoint counts (log: {attempt.log_path(killed[0])})"
        )
    if stop_signal is not None and any(end.code == -stop_signal for end in ends):
        return StoppedEarly(stop_signal.name).exit_code, f"{StoppedEarly(stop_signal.name)}; the same command continues"
    codes = {end.code for end in ends}
    return next((code for code in (EXIT_STEPS_LOST, EXIT_INTERRUPTED, EXIT_PREEMPTED) if code in codes), EXIT_OK), ""


def lost_steps(run: RunFolder, attempt: Attempt) -> int:
    """Steps that an attempt has done and that are in no checkpoint, as far as its folder tells."""
    saved = next((step for step, _ in step_folders(run.checkpoints_path)), 0)
    return lost_in(run.read(), recent_metrics(run.metrics_path), attempt, saved)


def lost_in(record: Mapping[str, Any], metrics: RecentMetrics, attempt: Attempt, saved: int) -> int:
    """What `lost_steps` finds, from what was read already: run.json, metrics.jsonl, the newest checkpoint's step."""
    recorded = record.get("lost_steps")
    seen = (metrics.step or 0) - saved if metrics.attempt == attempt.number else 0
    return max(0, seen, recorded if isinstance(recorded, int) else 0)


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


def first_failure(attempt: Attempt, world_size: int) -> Failure | None:
    """The first error that a rank recorded, a lost peer only where no rank has an error of its own.

    Where all that failed had lost a peer, the ranks that left before them are named, with what one of them printed.
    """
    records = {rank: _record(attempt, rank) for rank in range(world_size)}
    failures = [record for record in records.values() if record.get("exit_code") not in NO_FAILURE]
    if not failures:
        return None
    first = min(failures, key=lambda record: (_lost_peer(record), record.get("time", 0.0)))
    code, hosts = int(first["exit_code"]), tuple(first.get("hosts", ()))
    if not hosts and BROKEN_MACHINE.search(str(first.get("message", ""))):
        hosts = (str(first.get("host", "")),)
    lost_peer = _lost_peer(first)
    text = _leavers_text(attempt, records) if lost_peer else ""
    text = text or _failure_text(attempt, RankEnd(int(first["rank"]), code, 0.0))
    return Failure(text, code, bool(hosts) or code == EXIT_HANG or lost_peer, hosts)


def _leavers_text(attempt: Attempt, records: Mapping[int, Mapping[str, Any]]) -> str:
    """Whom the others lost: a rank that ended by an exit code of success, else those that could record nothing."""
    for rank, record in records.items():
        if record.get("exit_code") in (EXIT_OK, *STOPPED):
            text = f"{_left(RankEnd(rank, int(record['exit_code']), 0.0))}, and the others failed without it"
            return _with_log(f"{text} (log: {attempt.log_path(rank)})", attempt, rank)
    silent = [rank for rank, record in records.items() if not record]
    if not silent:
        return ""
    who, them = ("rank", "it") if len(silent) == 1 else ("ranks", "them")
    text = (
        f"{who} {', '.join(map(str, silent))} left before training was over and recorded no error "
        f"(ended by exit code 0 or killed), and the others failed without {them} (log: {attempt.log_path(silent[0])})"
    )
    return _with_log(text, attempt, silent[0])


def _failed(attempt: Attempt, end: RankEnd) -> bool:
    """Whether a rank failed by itself: also one that has recorded its error and was killed while it ended."""
    if end.by_launcher:
        return _record(attempt, end.rank).get("exit_code") not in NO_FAILURE
    return end.code not in NO_FAILURE


def _order(attempt: Attempt, end: RankEnd) -> tuple[bool, float]:
    record = _record(attempt, end.rank)
    return _lost_peer(record), record.get("time", end.last_seen_alive)


def _lost_peer(record: dict[str, Any]) -> bool:
    """Whether a rank failed because another was gone."""
    return bool(LOST_PEER.search(f"{record.get('type', '')} {record.get('message', '')}"))


def _record(attempt: Attempt, rank: int) -> dict[str, Any]:
    """What a failing rank wrote for the launcher; empty where it had no time to."""
    try:
        return dict(read_json(attempt.error_path(rank), ErrorRecord))
    except JSONError:
        return {}


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
    return _with_log(f"rank {end.rank} {how} (log: {log})", attempt, end.rank)


def _left(end: RankEnd) -> str:
    return f"rank {end.rank} left with exit code {end.code} before training was over"


def _with_log(text: str, attempt: Attempt, rank: int) -> str:
    return "\n".join([text, *(f"    {line}" for line in _last_lines(attempt, rank))])


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
