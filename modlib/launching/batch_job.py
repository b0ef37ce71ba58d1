"""The life of a SLURM job around its ranks: what its script does before srun, and after.

Whatever ended the ranks (preemption, the time limit, a lost node, a crash), the next attempt takes one path: it starts
from the run folder. Both functions run on the job's first node, import no torch, and decide from what the ranks left in
the run folder and what SLURM says about the job.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from modlib.checkpointing.names import step_folders
from modlib.checkpointing.run_checkpoints import require_checkpoints
from modlib.components import PACKAGE
from modlib.launching import scontrol
from modlib.launching.ending import Failure, first_failure, lost_steps
from modlib.launching.progress_guard import NoProgressError, require_progress
from modlib.launching.scheduler import cancel, job_states
from modlib.launching.snapshot import verify_snapshot
from modlib.runtime.errors import EXIT_CHECKPOINT, EXIT_OK, EXIT_PREEMPTED, EXIT_STEPS_LOST, RunFolderError
from modlib.runtime.kept import steps_lost
from modlib.runtime.run_folder import RunFolder
from modlib.runtime.shell import quoted

FIRST_PORT, LAST_PORT = 20000, 29999  # below the ephemeral range, which starts at 32768
PORTS_PER_JOB = 8  # the rendezvous may take the next one, where the first was taken meanwhile
KILL_MARGIN_S = 5.0
LOCK_WAIT_S = 240.0  # the ranks of a node that was lost hold the run until they notice


def begin(run: RunFolder) -> dict[str, str] | None:
    """Before srun: start an attempt and give its ranks' variables; None when the run is finished.

    Raises:
        NoProgressError: Too many attempts gained no step.
        RunFolderError: Code or config are not what was submitted, or somebody else trains into the folder.
    """
    require_checkpoints(run)
    if run.read().get("status") == "finished":
        return None
    _require_as_submitted(run)
    job_id, restart = scontrol.this_job(), _restart()
    hosts = scontrol.hosts_of_ranks()
    rendezvous = f"tcp://{hosts[0]}:{free_port(job_id, restart)}"
    with _locked(run):
        run.close_attempts()
        try:
            require_progress(run)
        except NoProgressError as error:
            run.update(status="failed", exit_code=error.exit_code)
            raise
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
    job_id = scontrol.this_job()
    attempt = run.attempt(int(os.environ["MODLIB_ATTEMPT"]))
    if not attempt.path.is_dir():
        _say(f"run folder ({run.path}) must stay in its place while a run trains, but was moved or removed")
        return status or EXIT_CHECKPOINT
    outcome, step = run.read().get("status"), run.read().get("step", 0)
    if attempt.number != run.num_attempts:  # the run is somebody else's by now
        attempt.finish("died", None, status or 1)
        _say(f"attempt {run.num_attempts} of run {run.name} has begun elsewhere; this job leaves it alone")
        return status or 1
    if outcome == "finished" or _is_saved_to_its_end(run):
        code = EXIT_CHECKPOINT if status == EXIT_CHECKPOINT else EXIT_OK  # lines of metrics are lost; nothing else is
        if outcome != "finished":  # for which there was no room
            run.note(status="finished")
        attempt.finish("finished", step, code)
        _cancel_others(run, job_id)
        return code
    failure = first_failure(attempt, run.read().get("world_size", 1))
    facts = scontrol.job_facts(job_id)
    stopped = outcome == "stopped"
    lost = lost_steps(run, attempt)
    code = EXIT_STEPS_LOST if lost else EXIT_PREEMPTED
    if failure is not None and not failure.retry and not stopped:
        attempt.finish("failed", step, failure.exit_code)
        return _give_up(run, job_id, failure.exit_code, failure.text)
    attempt.finish("stopped" if stopped else "died", step, code if stopped else status or 1)
    if not stopped:
        _say(failure.text if failure else f"the ranks ended with status {status} and recorded no error")
    if lost:
        _say(f"{steps_lost(step, lost)}: an attempt continues from the newest checkpoint")
    if facts.ending and facts.restarts > _restart():
        run.note(status="queued")
        _say(f"SLURM queues job {job_id} again; it continues from step {step}")
        return code
    if facts.ending and not (facts.preempted or facts.out_of_time or facts.node_lost):
        run.note(status="cancelled")
        _cancel_others(run, job_id)
        _say(f"job {job_id} was cancelled at step {step}, which is saved; continue with: {_resume(run)}")
        return code
    return _continue(run, job_id, failure, code)


def _is_saved_to_its_end(run: RunFolder) -> bool:
    num_steps = run.read().get("num_steps")
    newest = next((step for step, _ in step_folders(run.checkpoints_path)), 0)
    return num_steps is not None and newest >= num_steps


def _continue(run: RunFolder, job_id: str, failure: Failure | None, code: int) -> int:
    """Queue the run again by the first way that the site allows; returns the exit code of this job, usually `code`."""
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
    run.note(status="queued", excluded_hosts=excluded)
    if excluded and os.environ.get("MODLIB_EXCLUDE"):
        excluded.append(os.environ["MODLIB_EXCLUDE"])  # the list replaces the one of the submission
    if waiting := _others(run, job_id):
        if excluded:
            scontrol.keep_off(waiting[0], excluded)
        _say(f"job {waiting[0]} of the chain continues from step {step}")
    elif scontrol.requeue(job_id, excluded):
        _say(f"job {job_id} is queued again; it continues from step {step}")
    elif successor := scontrol.submit_successor(_script(), job_id, excluded):
        run.note(slurm={**slurm, "job_ids": [*slurm.get("job_ids", []), successor]})
        _say(f"job {job_id} may not be queued again; its successor, job {successor}, continues from step {step}")
    else:
        run.note(status="stopped")
        _say(
            f"step {step} is saved, but SLURM lets job {job_id} neither be queued again nor submit a successor; "
            f"continue with: {_resume(run)}"
        )
    return code


def _require_as_submitted(run: RunFolder) -> None:
    """See that the job runs the code and the config that were submitted, whatever happened since.

    Raises:
        RunFolderError: Says what differs.
    """
    if "MODLIB_CODE" in os.environ:
        code = Path(os.environ["MODLIB_CODE"])
        verify_snapshot(code)
        if not PACKAGE.is_relative_to(code.resolve()):
            raise RunFolderError(
                f"modlib ({PACKAGE}) must be the one of the snapshot ({code}), but another comes "
                "first on Python's path; look at PYTHONPATH and at what Slurm.setup does to it"
            )
    submitted = run.read().get("slurm", {}).get("config_sha256")
    if submitted and submitted != hashlib.sha256(run.config_path.read_bytes()).hexdigest():
        raise RunFolderError(
            f"config ({run.config_path}) must be the one that was submitted, but was changed since; "
            "submit the run again"
        )


@contextlib.contextmanager
def _locked(run: RunFolder) -> Iterator[None]:
    """Hold the run, after waiting for one that is about to let go of it."""
    deadline = time.monotonic() + LOCK_WAIT_S
    while True:
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(run.lock())
            except RunFolderError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(2.0)
                continue
            yield
            return


def _resume(run: RunFolder) -> str:
    return f"modlib resume {quoted(str(run.path))}"


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
    run.note(status="failed", exit_code=code)
    _cancel_others(run, job_id)
    _say(text)
    return code


def _others(run: RunFolder, job_id: str) -> list[str]:
    """The run's other jobs that still wait."""
    ids = [one for one in run.read().get("slurm", {}).get("job_ids", []) if one != job_id]
    states = job_states(ids, accounting=()) if ids else {}
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


def _restart() -> int:
    return int(os.environ.get("SLURM_RESTART_COUNT") or 0)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
