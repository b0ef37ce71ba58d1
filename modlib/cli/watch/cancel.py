"""`modlib cancel`: stop runs here or in SLURM's queue."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from typing import Annotated

import typer

from modlib.cli.options import RUNS, RunArguments, RunsDir
from modlib.cli.report import reported
from modlib.cli.watch.runs import find_run, states_of
from modlib.launching import scheduler
from modlib.launching.run_state import RunState
from modlib.runtime.run_folder import RunFolder

WAIT_S = 45.0  # a launcher gives its ranks 30 s to save
POLL_S = 0.1


def command(
    runs: RunArguments,
    now: Annotated[bool, typer.Option("--now", help="Kill instead: what was not saved yet is lost.")] = False,
    runs_dir: RunsDir = RUNS,
) -> None:
    """Stop runs: they save first, and `modlib resume` continues them. Exit code 1 when one of them goes on."""
    with reported():
        found = [find_run(word, runs_dir) for word in runs]
        stopped = [cancel(run, state, now) for run, state in zip(found, states_of(found), strict=True)]
    raise typer.Exit(0 if all(stopped) else 1)


def cancel(run: RunFolder, state: RunState, now: bool) -> bool:
    """Stop one run, saying what happens; whether it is stopped or will be."""
    if state.executor == "slurm" and not state.is_over:
        return _cancel_jobs(run, state, now)
    holder = run.holder()
    if holder is None:
        if state.is_over:
            _say(run, f"is {state.state} already")
        elif state.state == "created":
            run.update(status="cancelled")
            _say(run, "was not started; marked as cancelled")
        else:
            _say(run, f"is {state.state}, but no process holds it; nothing to stop")
        return True
    pid, host = int(holder["pid"]), holder["host"]
    if host != socket.gethostname():
        _say(run, f"runs as process {pid} on {host}; do this there: modlib cancel {run.path.absolute()}")
        return False
    try:
        os.kill(pid, signal.SIGKILL if now else signal.SIGTERM)
    except ProcessLookupError:
        pass  # it ended in between
    except PermissionError:
        _say(run, f"runs as process {pid} of another user; only they can stop it")
        return False
    if not now:
        _say(run, f"process {pid} was told to save and stop")
    return _wait(run, pid, now)


def _wait(run: RunFolder, pid: int, now: bool) -> bool:
    """Until the process is gone; then run.json says how it ended, by its own hand or by this one."""
    deadline = time.monotonic() + WAIT_S
    while (holder := run.holder()) and holder.get("pid") == pid:
        if time.monotonic() > deadline:
            _say(run, f"process {pid} has not stopped after {WAIT_S:g} s; `modlib cancel --now {run.name}` kills it")
            return False
        time.sleep(POLL_S)
    if run.read().get("status") in ("created", "queued", "running"):
        run.update(status="cancelled")
    after = states_of([run])[0]
    saved = "nothing was saved" if after.checkpoint_step is None else f"step {after.checkpoint_step} is saved"
    _say(run, f"is {after.state}{' (killed)' if now else ''}; {saved}")
    return True


def _cancel_jobs(run: RunFolder, state: RunState, now: bool) -> bool:
    """Cancel all jobs of a run that wait or run. SLURM sends SIGTERM, upon which a run saves, and does not requeue."""
    jobs = scheduler.job_states(state.job_ids, ())
    active = [job for job in state.job_ids if job in jobs and jobs[job].active]
    if not jobs:
        if state.job_ids:
            _say(run, f"has jobs, and SLURM does not answer here; where it does: scancel {' '.join(state.job_ids)}")
        else:
            _say(run, "is one for SLURM, but names no job; look for it with `modlib queue`")
        return False
    if active:
        running = [job for job in active if not jobs[job].pending]
        if now:  # before they are cancelled: SLURM passes no signal to a job that is about to have ended
            for job in running:
                scheduler.signal(job, "KILL", batch_script_too=True)
        complaint = scheduler.cancel(active)
        if complaint and any(job.active for job in scheduler.job_states(active, ()).values()):
            _say(run, f"could not be cancelled: {complaint}")
            return False
        saves = "" if not running else "; killed" if now else "; what runs saves first"
        _say(run, f"cancelled job {', '.join(active)}{saves}")
    else:
        ended = ", ".join(f"{job.job_id} is {job.state}" for job in jobs.values())
        _say(run, f"has no job that waits or runs: {ended}")
    if (now or run.holder() is None) and run.read().get("status") in ("created", "queued", "running", None):
        run.update(status="cancelled")  # nobody trains who could say so
    return True


def _say(run: RunFolder, text: str) -> None:
    print(f"{run.name}: {text}", file=sys.stderr, flush=True)
