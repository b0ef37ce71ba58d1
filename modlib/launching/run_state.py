"""What a run is doing: from its own folder first, from SLURM second. Works for a run of any executor, and for ruins."""

from __future__ import annotations

import dataclasses
import math
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modlib.checkpointing.names import step_folders
from modlib.launching.ending import lost_in
from modlib.launching.recent_metrics import RecentMetrics, recent_metrics
from modlib.launching.scheduler import UNKNOWN, JobState, reason_in_words
from modlib.runtime.errors import (
    EXIT_CHECKPOINT,
    EXIT_CONFIG,
    EXIT_DATA,
    EXIT_HANG,
    EXIT_INTERRUPTED,
    EXIT_NON_FINITE,
    EXIT_PREEMPTED,
    EXIT_STEPS_LOST,
    STOPPED,
)
from modlib.runtime.json_files import JSONError, read_json
from modlib.runtime.kept import steps_lost
from modlib.runtime.logs import ErrorRecord
from modlib.runtime.run_folder import Attempt, RunFolder
from modlib.runtime.units import counted, format_seconds

OVER = ("stopped", "finished", "failed", "cancelled", "died")
NO_NEWS_S = 600.0  # a run that says nothing for so long is worth a look
NO_NEWS_LINES = 5  # unless its lines come that rarely
LOG_TAIL_BYTES = 32 << 10
EXIT_WORDS = {
    1: "unexpected error",
    EXIT_CONFIG: "config error",
    EXIT_DATA: "data error",
    EXIT_CHECKPOINT: "checkpoint error",
    EXIT_NON_FINITE: "non-finite loss or gradients",
    EXIT_HANG: "no progress within the limit",
    EXIT_STEPS_LOST: "stopped with steps lost",
    EXIT_PREEMPTED: "stopped with nothing lost",
    EXIT_INTERRUPTED: "interrupted by hand",
}
_ERROR_LINE = re.compile(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d (?:\[rank \d+\] )?(?:ERROR|CRITICAL) (.*)")


@dataclass(frozen=True)
class RunState:
    """What is known of a run.

    Args:
        name: The run's.
        path: Its folder.
        state: "created", "queued", "running", or one of OVER.
        why: The state explained, where there is something to explain; "" otherwise.
        step: Optimizer steps done.
        num_steps: Of the whole run; None when unknown.
        tokens: Trained on so far.
        eta_s: Seconds until the last step at the recent pace, of a run that is running.
        loss: The last training loss.
        val_loss: The last loss of the first evaluator.
        host: Where it trains or last trained; several as SLURM abbreviates them.
        pid: The process there that holds the folder.
        world_size: Ranks.
        attempts: Starts so far.
        executor: "local" or "slurm".
        job_ids: Its jobs, the newest last.
        job: The job that counts: one that runs, else one that waits, else the newest; None where SLURM says nothing.
        exit_code: Of the last attempt.
        heartbeat_age_s: Since its process last renewed the lease; None when nobody holds the run.
        quiet_s: Since the last line of metrics, or since the attempt began; of a run that is running.
        no_news: That is suspiciously long.
        checkpoint_step: Of the newest checkpoint.
        lost_steps: Done beyond it by the last attempt, of a run that is stopped or died.
        last_activity: When something last happened in the folder, in Unix time.
        wandb_url: Of the run's page there.
    """

    name: str
    path: Path
    state: str
    why: str = ""
    step: int | None = None
    num_steps: int | None = None
    tokens: int | None = None
    eta_s: float | None = None
    loss: float | None = None
    val_loss: float | None = None
    host: str = ""
    pid: int | None = None
    world_size: int | None = None
    attempts: int = 0
    executor: str = "local"
    job_ids: tuple[str, ...] = ()
    job: JobState | None = None
    exit_code: int | None = None
    heartbeat_age_s: float | None = None
    quiet_s: float | None = None
    no_news: bool = False
    checkpoint_step: int | None = None
    lost_steps: int = 0
    last_activity: float = 0.0
    wandb_url: str = ""

    @property
    def is_over(self) -> bool:
        """Nothing trains and nothing will, unless somebody starts it again."""
        return self.state == "finished" or (self.state in OVER and not (self.job and self.job.active))

    def to_json(self) -> dict[str, Any]:
        """As plain data that every JSON parser reads."""
        return {name: _plain(value) for name, value in dataclasses.asdict(self).items()}


def job_ids_of(record: Mapping[str, Any]) -> tuple[str, ...]:
    """The SLURM jobs that a run.json names, newest last; none for a run that was last started here."""
    slurm = record.get("slurm")
    ids = slurm.get("job_ids") if isinstance(slurm, dict) and executor_of(record) == "slurm" else None
    return tuple(str(job) for job in ids) if isinstance(ids, list) else ()


def executor_of(record: Mapping[str, Any]) -> str:
    """ "local" or "slurm", from a run.json."""
    return str(record.get("executor") or ("slurm" if isinstance(record.get("slurm"), dict) else "local"))


def run_state(run: RunFolder, jobs: Mapping[str, JobState] | None = None) -> RunState:
    """What a run is doing.

    Args:
        run: Its folder; anything in it may be missing or torn.
        jobs: What SLURM says of its jobs; None or without them where nobody asked or it did not answer.
    """
    now = time.time()
    record = run.read()
    attempt = run.current_attempt()
    holder = run.holder()
    metrics = recent_metrics(run.metrics_path)
    job_ids = job_ids_of(record)
    job = _job_that_counts(job_ids, jobs or {})
    checkpoint = next((step for step, _ in step_folders(run.checkpoints_path)), None)
    lost = lost_in(record, metrics, attempt, checkpoint or 0)
    kept = "nothing was saved" if checkpoint is None else f"step {checkpoint} is saved"
    kept += f"; {steps_lost(checkpoint or 0, lost)}" if lost else ""
    state, why = _judge(run, record, attempt, holder, job, job_ids, kept)
    running = state == "running"
    num_steps = _num_steps(run, record)
    quiet_s = _quiet_s(attempt, metrics, now) if running else None
    no_news = quiet_s is not None and quiet_s > max(NO_NEWS_S, NO_NEWS_LINES * (metrics.seconds_per_line or 0.0))
    if no_news and quiet_s is not None:
        why = "; ".join(filter(None, [why, f"no news for {format_seconds(quiet_s)}"]))
    step = _step(record, metrics, attempt)
    return RunState(
        name=run.name,
        path=run.path,
        state=state,
        why=why,
        step=step,
        num_steps=num_steps,
        tokens=metrics.tokens if isinstance(metrics.tokens, int) else None,
        eta_s=_eta_s(step, num_steps, metrics, attempt, now) if running else None,
        loss=metrics.loss,
        val_loss=metrics.val_loss,
        host=_host(record, holder, job),
        pid=_int(holder.get("pid")) if holder else None,
        world_size=_int(record.get("world_size")),
        attempts=attempt.number,
        executor=executor_of(record),
        job_ids=job_ids,
        job=job,
        exit_code=_int(record.get("exit_code")) if state in OVER else None,
        heartbeat_age_s=max(0.0, now - holder["renewed"]) if holder else None,
        quiet_s=quiet_s,
        no_news=no_news,
        checkpoint_step=checkpoint,
        lost_steps=lost if state in ("stopped", "died") else 0,
        last_activity=_last_activity(run, attempt),
        wandb_url=str(record.get("wandb_url") or ""),
    )


def _judge(
    run: RunFolder,
    record: Mapping[str, Any],
    attempt: Attempt,
    holder: Mapping[str, Any] | None,
    job: JobState | None,
    job_ids: tuple[str, ...],
    kept: str,
) -> tuple[str, str]:
    """The state and what explains it."""
    status = record.get("status")
    if status == "finished":
        lost = _int(record.get("lost_metrics"))
        return "finished", f"{counted(lost, 'line')} of metrics.jsonl could not be written" if lost else ""
    trains = status == "running" or (job is not None and job.state == "RUNNING")
    if holder and trains and (job is None or job.active or job.state == UNKNOWN):
        return "running", ""
    if job is not None and job.active:
        return _judge_active(str(status), attempt, job)
    if status == "running":
        if job is not None and job.state == "CANCELLED":
            return "cancelled", f"job {job.job_id} was cancelled{f' {job.reason}' if job.reason else ''}"
        return "died", _why_died(record, attempt, job, kept)
    if status in ("failed", "died"):
        return str(status), failure(attempt, _int(record.get("exit_code")))
    if status == "stopped":
        return "stopped", f"{kept}; `modlib resume {run.name}` continues"
    if status == "cancelled":
        return "cancelled", ""
    if not record:
        return ("died" if attempt.number else "created"), run.damage() or "run.json is empty"
    if job_ids:
        return _judge_gone(job, job_ids)
    return "created", f"process {holder.get('pid')} on {holder.get('host')} prepares it" if holder else "never started"


def _judge_active(status: str, attempt: Attempt, job: JobState) -> tuple[str, str]:
    """Of a run with a job that waits or runs, and that no process trains as far as its folder tells."""
    if job.pending:
        reason = reason_in_words(job.reason) if job.reason else "waits"
        when = f", expected to start {job.start.replace('T', ' ')}" if job.start else ""
        again = f"; its attempt {attempt.number} {_ended(attempt)}" if attempt.number else ""
        return "queued", f"job {job.job_id}: {reason}{when}{again}"
    if status in OVER and job.state != "RUNNING":
        return status, f"job {job.job_id} is {job.state}"
    place = f" on {job.nodes}" if job.nodes else ""
    if job.state == "RUNNING":
        return "running", f"job {job.job_id} runs{place}, but no process trains: it starts, or it ends"
    return ("queued" if status in ("created", "queued") else "running"), f"job {job.job_id} is {job.state}{place}"


def _judge_gone(job: JobState | None, job_ids: tuple[str, ...]) -> tuple[str, str]:
    """Of a run that was submitted, never trained, and has no job that waits or runs."""
    if job is None:
        return "queued", f"job {job_ids[-1]} was submitted; SLURM does not answer here"
    if job.state == UNKNOWN:
        return "queued", f"job {job.job_id} was submitted, but squeue and sacct do not know it any more"
    if job.state == "CANCELLED":
        return "cancelled", f"job {job.job_id} was cancelled{f' {job.reason}' if job.reason else ''} before it started"
    return "failed", f"job {job.job_id} ended as {job.state} before training began"


def _why_died(record: Mapping[str, Any], attempt: Attempt, job: JobState | None, kept: str) -> str:
    if job is not None and job.state != UNKNOWN:
        how = f"job {job.job_id} ended as {job.state}"
    else:
        how = f"process {record.get('pid', '?')} on {record.get('host', '?')} is gone and left no word"
        how += f"; squeue and sacct do not know job {job.job_id} any more" if job is not None else ""
    error = _error(attempt)
    return "; ".join(filter(None, [how, error, kept]))


def failure(attempt: Attempt, exit_code: int | None) -> str:
    """How an attempt failed: the class of its exit code, and the first line of the error that came first."""
    if exit_code is None:
        words = ""
    elif exit_code > 128 and exit_code not in EXIT_WORDS:
        words = f"killed by signal {exit_code - 128}"
    else:
        words = EXIT_WORDS.get(exit_code, f"exit code {exit_code}")
    return ": ".join(filter(None, [words, _error(attempt)])) or "left no word"


def _error(attempt: Attempt) -> str:
    """The first failing rank's error in one line; "" where no rank left one."""
    records = []
    for path in attempt.logs_path.glob("rank-*.error.json"):
        try:
            record = read_json(path, ErrorRecord)
        except JSONError:
            continue
        if record.get("exit_code") not in STOPPED:
            records.append(record)
    if records:
        first = min(records, key=lambda record: record.get("time") or math.inf)
        line = next(iter(str(first.get("message") or "").splitlines()), "")
        kind = str(first.get("type") or "")
        expected = not first.get("traceback")  # an error of modlib's own, which explains itself
        text = line if expected and line else ": ".join(filter(None, [kind, line]))
        return f"rank {first.get('rank', '?')} on {first.get('host', '?')}: {text}"
    return _logged_error(attempt.log_path(0))


def _logged_error(path: Path) -> str:
    """The last error in a rank's log: its line, or the last line of the traceback that follows it."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, file.seek(0, 2) - LOG_TAIL_BYTES))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return ""
    found = [(number, match[1]) for number, line in enumerate(lines) if (match := _ERROR_LINE.match(line))]
    if not found:
        return ""
    number, text = found[-1]
    if text != "unexpected error":
        return text
    return next((line for line in reversed(lines[number + 1 :]) if line and not line.startswith(" ")), text)


def _ended(attempt: Attempt) -> str:
    reason = attempt.ending().get("reason")
    return f"ended as {reason}" if reason else "left no word"


def _job_that_counts(job_ids: tuple[str, ...], jobs: Mapping[str, JobState]) -> JobState | None:
    known = [jobs[job] for job in job_ids if job in jobs]
    active = [job for job in known if job.active]
    running = [job for job in active if not job.pending]
    return next(iter(running or active or known[::-1]), None)


def _num_steps(run: RunFolder, record: Mapping[str, Any]) -> int | None:
    if (recorded := _int(record.get("num_steps"))) is not None:
        return recorded
    try:
        parameters = read_json(run.provenance_path, dict[str, Any])["parameters"]
        return int(parameters["train.num_steps"]["value"])
    except (ValueError, KeyError, TypeError):
        return None


def _step(record: Mapping[str, Any], metrics: RecentMetrics, attempt: Attempt) -> int | None:
    """run.json has the step of the last attempt that ended in order; the metrics of one that runs are newer."""
    recorded = _int(record.get("step"))
    if metrics.step is None or (recorded is not None and metrics.attempt != attempt.number):
        return recorded
    if record.get("status") == "running" or recorded is None:
        return metrics.step
    return max(recorded, metrics.step)


def _eta_s(
    step: int | None, num_steps: int | None, metrics: RecentMetrics, attempt: Attempt, now: float
) -> float | None:
    if step is None or num_steps is None or metrics.time is None or metrics.seconds_per_step is None:
        return None
    if metrics.attempt != attempt.number:
        return None  # the pace of another attempt, perhaps of another machine
    return max(0.0, (num_steps - step) * metrics.seconds_per_step - max(0.0, now - metrics.time))


def _quiet_s(attempt: Attempt, metrics: RecentMetrics, now: float) -> float | None:
    if metrics.time is not None and metrics.attempt == attempt.number:
        return max(0.0, now - metrics.time)
    began = _mtime(attempt.path)
    return max(0.0, now - began) if began else None


def _host(record: Mapping[str, Any], holder: Mapping[str, Any] | None, job: JobState | None) -> str:
    if job is not None and job.nodes:
        return job.nodes
    return str((holder or record).get("host") or "")


def _last_activity(run: RunFolder, attempt: Attempt) -> float:
    paths = (run.path, run.run_json_path, run.metrics_path, run.path / "lease.json", attempt.log_path(0))
    return max(map(_mtime, paths))


def _mtime(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _int(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, Path):
        return str(value)
    return list(value) if isinstance(value, tuple) else value
