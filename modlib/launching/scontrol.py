"""What a job asks of SLURM about itself, and orders: facts, another place in the queue, a successor."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from modlib.launching.local import LEAKING

TIMEOUT_S = 30.0
PENDING_WAIT_S = 20.0
DEFAULT_KILL_WAIT_S = 30.0


@dataclass(frozen=True)
class JobFacts:
    """What SLURM says about a job that runs.

    Args:
        ending: Somebody or something else than the job's own script ends it.
        restarts: How often it was queued again, one that is under way included.
        preempted: Another job takes its nodes.
        end_time: Unix time of its time limit; None when unknown.
        log: What the job prints into; None when unknown.
    """

    ending: bool = False
    restarts: int = 0
    preempted: bool = False
    end_time: float | None = None
    log: str | None = None

    @property
    def out_of_time(self) -> bool:
        """Whether its time limit has passed."""
        return self.end_time is not None and time.time() >= self.end_time - 1.0


def job_facts(job_id: str) -> JobFacts:
    """The facts of a job; those of an undisturbed one where SLURM does not answer."""
    output = _ask("scontrol", "--oneliner", "show", "job", job_id)
    return JobFacts() if output is None else parse_job(output)


def parse_job(text: str) -> JobFacts:
    """The facts in the output of `scontrol --oneliner show job`."""
    fields = dict(re.findall(r"(\w+)=(\S*)", text))
    start, limit = fields.get("StartTime", ""), fields.get("TimeLimit", "")
    return JobFacts(
        ending=fields.get("JobState", "RUNNING") not in ("RUNNING", "CONFIGURING", "SUSPENDED"),
        restarts=int(fields.get("Restarts", "0")),
        preempted=fields.get("PreemptTime", "None") not in ("None", "N/A", ""),
        end_time=_end(start, limit),
        log=fields.get("StdOut"),
    )


def _end(start: str, limit: str) -> float | None:
    """When a job that started then reaches its limit ("1-02:03:04"). Its EndTime is no help: it moves when it ends."""
    found = re.fullmatch(r"(?:(\d+)-)?(\d+):(\d+):(\d+)", limit)
    try:
        started = time.mktime(time.strptime(start, "%Y-%m-%dT%H:%M:%S"))
    except ValueError:
        return None
    if found is None:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in found.groups())
    return started + 86400 * days + 3600 * hours + 60 * minutes + seconds


def hosts_of_ranks() -> list[str]:
    """The host of each rank of this job, in rank order (srun's default, one node after the other)."""
    output = _ask("scontrol", "show", "hostnames", os.environ.get("SLURM_JOB_NODELIST", ""))
    nodes = output.split() if output else [socket.gethostname()]
    per_node = int(os.environ.get("SLURM_NTASKS_PER_NODE") or 1)
    return [node for node in nodes for _ in range(per_node)]


def kill_wait_s() -> float:
    """Seconds between SIGTERM and SIGKILL when a job is ended."""
    found = re.search(r"KillWait\s*=\s*(\d+)", _ask("scontrol", "show", "config") or "")
    return float(found[1]) if found else DEFAULT_KILL_WAIT_S


def requeue(job_id: str, exclude: Sequence[str] = ()) -> bool:
    """Queue a running job again, kept off some nodes; whether SLURM did."""
    if not exclude:
        return _ask("scontrol", "requeue", job_id) is not None
    if _ask("scontrol", "requeuehold", job_id) is None:
        return False
    deadline = time.monotonic() + PENDING_WAIT_S
    while _ask("scontrol", "update", f"JobId={job_id}", f"ExcNodeList={','.join(exclude)}") is None:
        if time.monotonic() > deadline:  # better there than nowhere
            break
        time.sleep(0.2)  # it can be changed once it is pending
    _ask("scontrol", "release", job_id)
    return True


def submit_successor(script: Path, job_id: str, exclude: Sequence[str] = ()) -> str | None:
    """Submit a job's script again, to start when the job has ended; the new id, or None where SLURM refuses.

    Args:
        script: With submitit's pickles, `<id>_submitted.pkl`, beside it.
        job_id: The running job.
        exclude: Nodes to keep off.
    """
    array, index = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    options = [f"--dependency=afterany:{job_id}"]
    options += [f"--array={index}"] if array else []
    options += [f"--exclude={','.join(exclude)}"] if exclude else []
    output = _ask("sbatch", "--parsable", *options, str(script))
    if output is None:
        return None
    new = output.strip().partition(";")[0]
    old, new = (f"{array}_{index}", f"{new}_{index}") if array else (job_id, new)
    payload = script.parent / f"{old}_submitted.pkl"
    if payload.exists():  # submitit looks for it under the new id, when this job has ended
        (script.parent / f"{new}_submitted.pkl").write_bytes(payload.read_bytes())
    return new


def _ask(*command: str) -> str | None:
    """What a SLURM command prints; None where it fails or is not there."""
    outside = {name: value for name, value in os.environ.items() if not LEAKING.fullmatch(name) or name == "SLURM_CONF"}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, env=outside, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout
