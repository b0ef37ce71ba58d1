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

from modlib.launching.local import clean_environment

TIMEOUT_S = 15.0
PENDING_WAIT_S = 20.0
LOST = ("NODE_FAIL", "BOOT_FAIL", "NodeDown", "NodeFail", "NODE_FAILURE")
DEFAULT_KILL_WAIT_S = 30.0


@dataclass(frozen=True)
class JobFacts:
    """What SLURM says about a job that runs.

    Args:
        ending: Somebody or something else than the job's own script ends it.
        node_lost: A node does not answer any more.
        restarts: How often it was queued again, one that is under way included.
        preempted: Another job takes its nodes.
        end_time: Unix time of its time limit; None when unknown.
        log: What the job prints into; None when unknown.
    """

    ending: bool = False
    node_lost: bool = False
    restarts: int = 0
    preempted: bool = False
    end_time: float | None = None
    log: str | None = None

    @property
    def out_of_time(self) -> bool:
        """Whether its time limit has passed."""
        return self.end_time is not None and time.time() >= self.end_time - 1.0


def this_job() -> str:
    """What SLURM calls this job; an element of an array by its index, since the array's number may mean all of them."""
    array, index = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{index}" if array and index else os.environ["SLURM_JOB_ID"]


def job_facts(job_id: str) -> JobFacts:
    """The facts of a job; those of an undisturbed one where SLURM does not answer."""
    output = _ask("scontrol", "--oneliner", "show", "job", job_id)
    return JobFacts() if output is None else parse_job(output)


def parse_job(text: str) -> JobFacts:
    """The facts in the output of `scontrol --oneliner show job`."""
    fields: dict[str, str] = {}
    for name, value in re.findall(r"(\w+)=(.*?)(?= \w+=|$)", text.partition("\n")[0]):
        fields.setdefault(name, value.strip())  # a comment may hold what looks like a field
    start, limit = fields.get("StartTime", ""), fields.get("TimeLimit", "")
    return JobFacts(
        ending=fields.get("JobState", "RUNNING") not in ("RUNNING", "CONFIGURING", "SUSPENDED"),
        node_lost=fields.get("Reason") in LOST or fields.get("JobState") in LOST,
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
    nodes = expanded(os.environ.get("SLURM_JOB_NODELIST", "")) or [socket.gethostname()]
    per_node = int(os.environ.get("SLURM_NTASKS_PER_NODE") or 1)
    return [node for node in nodes for _ in range(per_node)]


def expanded(nodelist: str) -> list[str]:
    """The names in a node list such as "node[1-3,07],gpu1", in its order; needs no SLURM on the node.

    Names with several brackets ("r[1-2]n[1-4]") are combined as SLURM does, the last one fastest.
    """
    names: list[str] = []
    for part in re.findall(r"(?:[^,\[]+|\[[^\]]*\])+", nodelist):
        found = [""]
        for plain, brackets in re.findall(r"([^\[]+)|\[([^\]]*)\]", part):
            pieces = [plain] if plain else [number for span in brackets.split(",") for number in _numbers(span)]
            found = [name + piece for name in found for piece in pieces]
        names += found
    return names


def _numbers(span: str) -> list[str]:
    first, _, last = span.partition("-")
    return [f"{number:0{len(first)}d}" for number in range(int(first), int(last or first) + 1)]


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
    while not keep_off(job_id, exclude):
        if time.monotonic() > deadline:  # better there than nowhere
            break
        time.sleep(0.2)  # it can be changed once it is pending
    _ask("scontrol", "release", job_id)
    return True


def keep_off(job_id: str, exclude: Sequence[str]) -> bool:
    """Let a waiting job not use some nodes; whether SLURM agreed."""
    return _ask("scontrol", "update", f"JobId={job_id}", f"ExcNodeList={','.join(exclude)}") is not None


def submit_successor(script: Path, job_id: str, exclude: Sequence[str] = ()) -> str | None:
    """Submit a job's script again, to start when the job has ended; the new id, or None where SLURM refuses.

    Args:
        script: With submitit's pickles, `<id>_submitted.pkl`, beside it.
        job_id: The running job, as `this_job` names it.
        exclude: Nodes to keep off.
    """
    _, is_element, index = job_id.partition("_")
    options = [f"--dependency=afterany:{job_id}"]
    options += [f"--array={index}"] if is_element else []
    options += [f"--exclude={','.join(exclude)}"] if exclude else []
    output = _ask("sbatch", "--parsable", *options, str(script))
    if output is None:
        return None
    number = output.strip().partition(";")[0]
    successor = f"{number}_{index}" if is_element else number
    payload = script.parent / f"{job_id}_submitted.pkl"
    if payload.exists():  # submitit looks for it under the new id; and the successor's successor needs a script too
        (script.parent / f"{successor}_submitted.pkl").write_bytes(payload.read_bytes())
        (script.parent / f"{number}_submission.sh").write_bytes(script.read_bytes())
    return successor


def _ask(*command: str) -> str | None:
    """What a SLURM command prints; None where it fails or is not there."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=TIMEOUT_S, env=clean_environment(), check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout
