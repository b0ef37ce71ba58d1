"""SLURM's answers: what became of a job, what is queued; and the two things to tell it, cancel and signal.

Everything here works where SLURM is absent, slow or down: a question then has no answer, and nothing is raised.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

SQUEUE_TIMEOUT_S = 10.0
SACCT_TIMEOUT_S = 20.0  # asks a database
UNKNOWN = "UNKNOWN"  # SLURM answered, and knows no such job
PENDING = frozenset({"PENDING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "SPECIAL_EXIT", "RESV_DEL_HOLD"})
HAS_NODES = frozenset(
    ("CONFIGURING", "RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "RESIZING", "SIGNALING", "STAGE_OUT")
)

_JOB_ID = re.compile(r"\d+([_+]\d+)?")
# the name last: it alone may have a bar in it
_SQUEUE_FIELDS = (
    "JobArrayID", "State", "Reason", "NodeList", "StartTime", "EndTime", "TimeLeft", "RestartCnt", "Partition",
    "WorkDir", "Command", "Name",
)  # fmt: skip
_SACCT_FIELDS = ("JobID", "State", "Reason", "NodeList", "Start", "End")
_NOTHING = ("", "N/A", "None", "Unknown", "None assigned", "(null)", "NOT_SET", "INVALID", "UNLIMITED")
_TIME_LEFT = re.compile(r"(?:(?:(\d+)-)?(\d+):)?(\d+):(\d+)")
_SET_BY_USERS = re.compile("SQUEUE_.*|SACCT_.*|SCANCEL_.*|SLURM_TIME_FORMAT")  # would change what is printed or asked
# what squeue's words for why a job waits mean to somebody who waits
_REASONS = {
    "Priority": "jobs of higher priority come first",
    "Resources": "waits for nodes to become free",
    "Dependency": "waits for another job to end",
    "DependencyNeverSatisfied": "waits for a job that ended in another way than asked for: it will never start",
    "BeginTime": "may not start yet: a requeued job waits a moment",
    "JobHeldUser": "held by its user: scontrol release starts it",
    "JobHeldAdmin": "held by an administrator",
    "JobArrayTaskLimit": "as many jobs of its array run as may run at once",
    "PartitionTimeLimit": "asks for more time than its partition gives: it will never start",
    "PartitionNodeLimit": "asks for more nodes than its partition gives: it will never start",
    "PartitionDown": "its partition is down",
    "PartitionInactive": "its partition takes no new jobs",
    "BadConstraints": "no node has what it asks for: it will never start",
    "Licenses": "waits for a licence",
    "Reservation": "waits for its reservation to begin",
    "NodeDown": "a node that it needs is down",
    "ReqNodeNotAvail": "a node that it needs is down, drained or reserved",
    "Prolog": "the nodes are being prepared",
    "Cleaning": "is requeued, and its last attempt is still being cleaned up",
    "InvalidQOS": "its QOS does not exist or is not allowed: it will never start",
    "InvalidAccount": "its account does not exist or is not allowed: it will never start",
    "JobLaunchFailure": "could not be started on its nodes",
    "launch failed requeued held": "could not be started on its nodes, and is held: scontrol release tries again",
    "job requeued in held state": "was requeued on hold: scontrol release starts it",
}


@dataclass(frozen=True)
class JobState:
    """A job as SLURM sees it.

    Args:
        job_id: "123", or "123_4" for an element of an array.
        state: "PENDING", "RUNNING", "TIMEOUT", ...; UNKNOWN where SLURM answered but knows no such job.
        reason: SLURM's word for why it waits or ended so; "" for none.
        nodes: As SLURM abbreviates them, "node[1-2]"; "" before it has some.
        start: Local time, when it started or is expected to, "2026-05-01T12:00:00"; "" when unknown.
        end: When it ended or has to.
        time_left_s: Until its time limit; None when it has ended, or has no limit.
        restarts: How often it was requeued.
    """

    job_id: str
    state: str
    reason: str = ""
    nodes: str = ""
    start: str = ""
    end: str = ""
    time_left_s: int | None = None
    restarts: int = 0

    @property
    def pending(self) -> bool:
        """It waits to start, for the first time or again."""
        return self.state in PENDING

    @property
    def active(self) -> bool:
        """It waits, runs or is about to have ended."""
        return self.state in PENDING | HAS_NODES


@dataclass(frozen=True)
class QueuedJob(JobState):
    """A job in the queue, with where it comes from.

    Args:
        name: The job's.
        partition: Where it waits or runs.
        run_path: The run folder that its script lies in; None when it is none.
    """

    name: str = ""
    partition: str = ""
    run_path: Path | None = None


def available() -> bool:
    """Whether SLURM's commands are installed here; that they answer is another matter."""
    return shutil.which("squeue") is not None


def job_states(job_ids: Sequence[str], accounting: Collection[str] | None = None) -> dict[str, JobState]:
    """What became of these jobs: squeue is asked once, then sacct once about those that squeue no longer knows.

    A job that neither knows has the state UNKNOWN. A job is left out where what could know it does not answer.

    Args:
        job_ids: Of jobs or array elements.
        accounting: The jobs worth asking sacct about, which burdens a database; None: all.
    """
    wanted = list(dict.fromkeys(job for job in job_ids if _JOB_ID.fullmatch(job)))
    if not wanted or not available():
        return {}
    text = _squeue("--states=all", f"--jobs={','.join(wanted)}")
    found: dict[str, JobState] = {} if text is None else {job.job_id: _plain(job) for job in parse_squeue(text)}
    missing = [job for job in wanted if job not in found]
    asked = [job for job in missing if accounting is None or job in accounting]
    answered = text is not None
    if asked:
        records = _output(_sacct_command(asked), SACCT_TIMEOUT_S)
        answered = answered and records is not None
        found |= {} if records is None else parse_sacct(records)
    if answered:
        found |= {job: JobState(job, UNKNOWN) for job in missing if job not in found}
    return {job: found[job] for job in wanted if job in found}


def my_jobs() -> list[QueuedJob] | None:
    """This user's jobs that wait or run; None where squeue does not answer."""
    text = _squeue(f"--user={os.getuid()}") if available() else None
    return None if text is None else parse_squeue(text)


def cancel(job_ids: Sequence[str]) -> str:
    """Cancel jobs, so that they are not requeued; returns what scancel complains about, "" for nothing.

    What runs gets SIGTERM, and SIGKILL when it is still there after the cluster's KillWait. A job that has ended
    meanwhile is something that scancel complains about.
    """
    return _told(["scancel", *job_ids])


def signal(job_id: str, name: str, *, batch_script_too: bool = False) -> str:
    """Send a signal to all processes of a job's steps; returns what scancel complains about, "" for nothing.

    Args:
        job_id: The job's.
        name: "TERM", "USR2", "KILL", ...
        batch_script_too: To the batch script as well.
    """
    return _told(["scancel", f"--signal={name}", *(["--full"] if batch_script_too else []), job_id])


def reason_in_words(reason: str) -> str:
    """SLURM's word for why a job waits, explained where that is possible."""
    word = reason.partition(",")[0].strip("() ")
    words = _REASONS.get(word)
    if words is None and re.match("QOS|Assoc|Max", word):
        words = "a limit of its account, user or QOS is reached"
    return reason if words is None else f"{words} ({reason})"


def parse_squeue(text: str) -> list[QueuedJob]:
    """What squeue printed with the fields of this module; lines of another form are left out."""
    jobs = []
    for line in text.splitlines():
        fields = line.removesuffix("|").split("|", len(_SQUEUE_FIELDS) - 1)
        if len(fields) != len(_SQUEUE_FIELDS) or not _JOB_ID.fullmatch(fields[0]):
            continue
        job_id, state, reason, nodes, start, end, left, restarts, partition, folder, script, name = fields
        lives = state in PENDING | HAS_NODES
        jobs.append(
            QueuedJob(
                job_id,
                state,
                _known(reason),
                _known(nodes),
                _known(start),
                _known(end),
                parse_time_left(left) if lives else None,
                int(restarts) if restarts.isdecimal() else 0,
                name,
                partition,
                _run_path(script, folder),
            )
        )
    return jobs


def parse_sacct(text: str) -> dict[str, JobState]:
    """What sacct printed with the fields of this module: the newest life of each job, the earlier ones counted."""
    jobs: dict[str, JobState] = {}
    for line in text.splitlines():
        fields = line.split("|")
        if len(fields) != len(_SACCT_FIELDS) or not _JOB_ID.fullmatch(fields[0]):
            continue
        job_id, state, reason, nodes, start, end = fields
        state, _, by = state.partition(" ")  # "CANCELLED by 1000"
        before = jobs.get(job_id)
        restarts = 0 if before is None else before.restarts + 1
        why = f"{by[:3]}user {by[3:]}" if by.startswith("by ") else _known(reason)
        jobs[job_id] = JobState(job_id, state, why, _known(nodes), _known(start), _known(end), None, restarts)
    return jobs


def parse_time_left(text: str) -> int | None:
    """Seconds of "1-02:03:04", "2:03:04" or "3:04"; None for a word."""
    match = _TIME_LEFT.fullmatch(text.strip())
    if match is None:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


def _known(value: str) -> str:
    return "" if value in _NOTHING else value


def _plain(job: QueuedJob) -> JobState:
    return JobState(job.job_id, job.state, job.reason, job.nodes, job.start, job.end, job.time_left_s, job.restarts)


def _run_path(script: str, folder: str) -> Path | None:
    """The run folder that a job's script or its working folder lies in."""
    for place in (script, folder):
        path = Path(place)
        if path.is_absolute():
            for parent in (path, *path.parents):
                if (parent / "run.json").is_file():
                    return parent
    return None


def _squeue(*arguments: str) -> str | None:
    fields = ",".join(f"{field}:|" for field in _SQUEUE_FIELDS)
    return _output(["squeue", "--noheader", "--array", f"--Format={fields}", *arguments], SQUEUE_TIMEOUT_S)


def _sacct_command(job_ids: Sequence[str]) -> list[str]:
    kind = ("--duplicates", "--allocations", "--parsable2", "--noheader")
    return ["sacct", *kind, f"--format={','.join(_SACCT_FIELDS)}", f"--jobs={','.join(job_ids)}"]


def _output(command: Sequence[str], timeout_s: float) -> str | None:
    """What a question printed; None where it has no answer. That no such job exists is an empty answer."""
    done = _run(command, timeout_s)
    if done is None:
        return None
    if done.returncode != 0:
        return "" if "Invalid job id specified" in done.stderr else None
    return done.stdout


def _told(command: Sequence[str]) -> str:
    done = _run(command, SQUEUE_TIMEOUT_S)
    if done is None:
        return f"{command[0]} is not installed here or does not answer"
    return done.stderr.strip() or ("" if done.returncode == 0 else f"{command[0]} ended with {done.returncode}")


def _run(command: Sequence[str], timeout_s: float) -> subprocess.CompletedProcess[str] | None:
    environment = {name: value for name, value in os.environ.items() if not _SET_BY_USERS.fullmatch(name)}
    try:
        return subprocess.run(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s,
        )
    except (OSError, subprocess.SubprocessError):
        return None
