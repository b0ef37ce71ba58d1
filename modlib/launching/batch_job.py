"""The life of a SLURM job around its ranks: what its script does before srun, and after.

Whatever ended the ranks (preemption, the time limit, a lost node, a crash), the next attempt takes one path: it starts
from the run folder. Both functions run on the job's first node, import no torch, and decide from what the ranks left in
the run folder and what SLURM says about the job.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import sys
from pathlib import Path

from modlib.launching import scontrol
from modlib.launching.ending import Failure, first_failure
from modlib.launching.progress_guard import NoProgressError, require_progress
from modlib.launching.scheduler import cancel, job_states
from modlib.launching.snapshot import verify_snapshot
from modlib.runtime.errors import EXIT_OK, EXIT_PREEMPTED, RunFolderError
from modlib.runtime.run_folder import RunFolder

FIRST_PORT, LAST_PORT = 20000, 29999  # below the ephemeral range, which starts at 32768
PORTS_PER_JOB = 8  # the rendezvous may take the next one, where the first was taken meanwhile
KILL_MARGIN_S = 5.0


def begin(run: RunFolder) -> dict[str, str] | None:
    """Before srun: start an attempt and give its ranks' variables; None when the run is finished.

    Raises:
        NoProgressError: Too many attempts gained no step.
        RunFolderError: The code is not what was submitted, or somebody else trains into the folder.
    """
    if run.read().get("status") == "finished":
        return None
    if "MODLIB_CODE" in os.environ:
        verify_snapshot(Path(os.environ["MODLIB_CODE"]))
    try:
        require_progress(run)
    except NoProgressError as error:
        run.update(status="failed", exit_code=error.exit_code)
        raise
    job_id, restart = os.environ["SLURM_JOB_ID"], _restart()
    hosts = scontrol.hosts_of_ranks()
    rendezvous = f"tcp://{hosts[0]}:{free_port(job_id, restart)}"
    with run.lock():
        attempt = run.begin_attempt()
        run.update(
            host=hosts[0],
            world_size=len(hosts),
            executor="slurm",
            job={"id": job_id, "restart": restart, "hosts": list(dict.fromkeys(hosts)), "rendezvous": rendezvous},
        )
    facts = scontrol.job_facts(job_id)
    if facts.log is not None:
        with contextlib.suppress(OSError):  # where links are not to be had, the log is only further away
            attempt.job_log_path.symlink_to(os.path.relpath(facts.log, attempt.logs_path.resolve()))
    return {
        "MODLIB_ATTEMPT": str(attempt.number),
        "MODLIB_HOSTS": ",".join(hosts),
        "MODLIB_RENDEZVOUS": rendezvous,
        "MODLIB_RENDEZVOUS_TOKEN": f"{run.name}/{attempt.number}/{job_id}.{restart}",
        "MODLIB_GRACE_S": f"{max(1.0, scontrol.kill_wait_s() - KILL_MARGIN_S):g}",
        "MODLIB_END_TIME": "" if facts.end_time is None else f"{facts.end_time:.0f}",
    }


def end(run: RunFolder, status: int) -> int:
    """After srun: record how the attempt ended, and see that the run goes on where it should.

    Args:
        run: The run.
        status: Exit status of srun.

    Returns:
        The exit code of the job.
    """
    job_id = os.environ["SLURM_JOB_ID"]
    attempt = run.attempt(int(os.environ["MODLIB_ATTEMPT"]))
    outcome, step = run.read().get("status"), run.read().get("step", 0)
    if outcome == "finished":
        attempt.finish("finished", step, EXIT_OK)
        _cancel_others(run, job_id)
        return EXIT_OK
    failure = first_failure(attempt)
    facts = scontrol.job_facts(job_id)
    stopped = outcome == "stopped"
    if failure is not None and not failure.retry and not stopped:
        attempt.finish("failed", step, failure.exit_code)
        return _give_up(run, job_id, failure.exit_code, failure.text)
    attempt.finish("stopped" if stopped else "died", step, EXIT_PREEMPTED if stopped else status or 1)
    if not stopped:
        _say(failure.text if failure else f"the ranks ended with status {status} and recorded no error")
    if facts.ending and facts.restarts > _restart():
        run.update(status="queued")
        _say(f"SLURM queues job {job_id} again; it continues from step {step}")
        return EXIT_PREEMPTED
    if facts.ending and not facts.preempted and not facts.out_of_time:
        run.update(status="cancelled")
        _cancel_others(run, job_id)
        _say(f"job {job_id} was cancelled at step {step}, which is saved; continue with: modlib resume {run.path}")
        return EXIT_PREEMPTED
    return _continue(run, job_id, failure)


def _continue(run: RunFolder, job_id: str, failure: Failure | None) -> int:
    """Queue the run again by the first way that the site allows; returns the exit code of this job."""
    state = run.read()
    step, slurm = state.get("step", 0), state.get("slurm", {})
    try:
        require_progress(run)
    except NoProgressError as error:
        return _give_up(run, job_id, error.exit_code, str(error))
    bad = failure.hosts if failure else ()
    excluded = sorted({*state.get("excluded_hosts", []), *bad})
    if bad:
        _say(f"the next attempt keeps off {', '.join(bad)}")
    run.update(status="queued", excluded_hosts=excluded)
    if waiting := _others(run, job_id):
        _say(f"job {waiting[0]} of the chain continues from step {step}")
    elif scontrol.requeue(job_id, excluded):
        _say(f"job {job_id} is queued again; it continues from step {step}")
    elif successor := scontrol.submit_successor(_script(), job_id, excluded):
        run.update(slurm={**slurm, "job_ids": [*slurm.get("job_ids", []), successor]})
        _say(f"job {job_id} may not be queued again; its successor, job {successor}, continues from step {step}")
    else:
        run.update(status="stopped")
        _say(
            f"step {step} is saved, but SLURM lets job {job_id} neither be queued again nor submit a successor; "
            f"continue with: modlib resume {run.path}"
        )
    return EXIT_PREEMPTED


def free_port(job_id: str, restart: int) -> int:
    """A port for the rendezvous: by job and restart, or the next that is free on this host.

    Raises:
        RunFolderError: None is free.
    """
    slots = (LAST_PORT + 1 - FIRST_PORT) // PORTS_PER_JOB
    first = int(re.sub(r"\D", "", job_id) or 0) + restart * 421
    for offset in range(slots):
        port = FIRST_PORT + (first + offset) % slots * PORTS_PER_JOB
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("", port))
            return port
    raise RunFolderError(
        f"a port from {FIRST_PORT} to {LAST_PORT} must be free on {socket.gethostname()} for the ranks to meet; "
        "exclude the host, or end what holds them"
    )


def _give_up(run: RunFolder, job_id: str, code: int, text: str) -> int:
    """End the run for good; the text is the last thing in the job's log."""
    run.update(status="failed", exit_code=code)
    _cancel_others(run, job_id)
    _say(text)
    return code


def _others(run: RunFolder, job_id: str) -> list[str]:
    """The run's other jobs that still wait."""
    ids = [one for one in run.read().get("slurm", {}).get("job_ids", []) if one not in (job_id, _element())]
    states = job_states(ids) if ids else {}
    return [one for one in ids if one in states and states[one].state == "PENDING"]


def _cancel_others(run: RunFolder, job_id: str) -> None:
    if waiting := _others(run, job_id):
        cancel(waiting)


def _script() -> Path:
    """This job's own script: submitit's, or the one that was handed to sbatch."""
    if "MODLIB_SCRIPT" in os.environ:
        return Path(os.environ["MODLIB_SCRIPT"])
    submitted_as = os.environ.get("SLURM_ARRAY_JOB_ID") or os.environ["SLURM_JOB_ID"]
    return Path(os.environ["MODLIB_SUBMITIT"]) / f"{submitted_as}_submission.sh"


def _element() -> str:
    """This job's number as an element of an array."""
    return f"{os.environ.get('SLURM_ARRAY_JOB_ID')}_{os.environ.get('SLURM_ARRAY_TASK_ID')}"


def _restart() -> int:
    return int(os.environ.get("SLURM_RESTART_COUNT") or 0)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
