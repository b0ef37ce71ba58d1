"""`modlib queue`: this user's SLURM jobs, by the names of their runs."""

from __future__ import annotations

import dataclasses
import json
import sys
from typing import Annotated

import typer

from modlib.cli.options import RUNS, RunsDir
from modlib.cli.report import reported
from modlib.cli.table import print_remarked
from modlib.cli.watch.runs import run_folders
from modlib.launching import scheduler
from modlib.launching.run_state import job_ids_of
from modlib.launching.scheduler import QueuedJob, reason_in_words
from modlib.runtime.units import format_seconds

COLUMNS = ("job", "run", "state", "partition", "nodes", "start", "left", "why")
COLOURS = {"PENDING": "yellow", "RUNNING": "green", "COMPLETING": "cyan"}


def command(
    runs_dir: RunsDir = RUNS,
    as_json: Annotated[bool, typer.Option("--json", help="JSON on stdout: a list, one object per job.")] = False,
) -> None:
    """List my jobs that wait or run: their runs, why they wait, and when SLURM expects to start them."""
    with reported():
        jobs = scheduler.my_jobs()
        if jobs is None:
            where = "does not answer" if scheduler.available() else "is not installed here"
            print(f"SLURM {where}; `modlib ls` lists the runs", file=sys.stderr)
            raise typer.Exit(1)
        names = {job: name for name, run in run_folders(runs_dir).items() for job in job_ids_of(run.read())}
    if as_json:
        print(json.dumps([_record(job, names) for job in jobs], indent=1, ensure_ascii=False))
    elif jobs:
        print_remarked(COLUMNS, [_row(job, names) for job in jobs], colours=COLOURS)
    else:
        print("no job of mine waits or runs", file=sys.stderr)


def _run_name(job: QueuedJob, names: dict[str, str]) -> str:
    """The run's name, or in brackets the job's, which belongs to no run that is known here."""
    known = names.get(job.job_id) or (job.run_path.name if job.run_path else "")
    return known or f"({job.name})"


def _row(job: QueuedJob, names: dict[str, str]) -> list[str]:
    start = job.start.replace("T", " ")
    left = format_seconds(job.time_left_s) if job.time_left_s is not None and not job.pending else ""
    why = reason_in_words(job.reason) if job.reason else ""
    again = f"requeued {job.restarts} time{'s' if job.restarts != 1 else ''}" if job.restarts else ""
    text = "; ".join(filter(None, [why, again]))
    return [job.job_id, _run_name(job, names), job.state, job.partition, job.nodes, start, left, text]


def _record(job: QueuedJob, names: dict[str, str]) -> dict[str, object]:
    path = None if job.run_path is None else str(job.run_path)
    run = names.get(job.job_id) or (job.run_path.name if job.run_path else None)
    return {**dataclasses.asdict(job), "run": run, "run_path": path, "reason_in_words": reason_in_words(job.reason)}
