"""A run on a SLURM cluster: plan it for its world, prepare the run folder, snapshot the code, submit."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import uuid
from collections.abc import Mapping
from pathlib import Path

from modlib.checkpointing.run_checkpoints import newest_saved
from modlib.cli.processes.slurm_task import run_task
from modlib.cli.report import finished_text
from modlib.cli.start.planning import check_plan, plan_run
from modlib.cli.watch.follow import command as follow_run
from modlib.config import Config
from modlib.launching.continuing import Resume, is_finished
from modlib.launching.job_script import JobScript
from modlib.launching.lengthening import Change
from modlib.launching.prepare import SOURCE, prepare
from modlib.launching.scheduler import JobState, job_states
from modlib.launching.slurm import Slurm
from modlib.launching.snapshot import take_snapshot
from modlib.launching.submission import submit, submitit_text
from modlib.launching.sweep import Sweep, pending_points
from modlib.runtime import durable
from modlib.runtime.console import PlainConsole
from modlib.runtime.errors import EXIT_OK, ConfigError, RunFolderError
from modlib.runtime.logs import start_logging
from modlib.runtime.run_folder import RunFolder
from modlib.runtime.shell import quoted
from modlib.runtime.signals import delayed
from modlib.tracking.banner import start_banner
from modlib.tracking.run_plan import Plan

SUBMITIT = "submitit"


def submit_run(
    config: Config,
    slurm: Slurm,
    *,
    runs_dir: Path,
    name: str,
    resume: Resume,
    chain: int = 1,
    follow: bool = False,
    change: Change | None = None,
) -> int:
    """Plan, prepare the run folder, announce, submit; the job does the rest. Returns the exit code."""
    start_logging()
    plan = plan_run(config, slurm, runs_dir, name, make_data=True)
    _require_idle(RunFolder(runs_dir / plan.run_name))  # a job that waits keeps the config that it was submitted with
    needed = plan.checkpoint_bytes
    run = prepare(config, runs_dir=runs_dir, name=name, resume=resume, needed_bytes=needed, change=change)
    run = RunFolder(run.path.resolve())  # the job starts elsewhere
    console = PlainConsole(stderr=True)
    state = run.read()
    if is_finished(run, plan.num_steps, resume):
        console.print(finished_text(run, state["step"]), soft_wrap=True)
        return EXIT_OK
    run.update(num_steps=plan.num_steps, checkpoint_bytes=plan.checkpoint_bytes)
    saved = newest_saved(run)
    start = 0 if saved is None else saved.step
    console.print(start_banner(dataclasses.replace(plan, start_step=start)))
    ids = _queue([run], config, slurm, RunFolder(run.path), chain)
    console.print(_submitted(run, ids), soft_wrap=True)
    if follow:
        follow_run(str(run.path))
    return EXIT_OK


def submit_sweep(sweep: Sweep, plans: Mapping[str, Plan], slurm: Slurm, resume: Resume) -> int:
    """Submit the points that are neither finished nor on their way, as one array of jobs; returns the exit code."""
    start_logging()
    console = PlainConsole(stderr=True)
    runs = []
    pending = {point.name: RunFolder(point.run.path.resolve()) for point in pending_points(sweep)}
    states = job_states([job_id for run in pending.values() for job_id in _job_ids(run)])
    for point, run in ((point, pending[point.name]) for point in sweep.points if point.name in pending):
        if job := _active(run, states):
            console.print(f"{point.name} is {job.state.lower()} as job {job.job_id} already")
            continue
        plan, config = plans[point.name], sweep.configs[point.name]
        prepare(config, runs_dir=sweep.folder, name=point.name, resume=resume, needed_bytes=plan.checkpoint_bytes)
        run.update(num_steps=plan.num_steps, checkpoint_bytes=plan.checkpoint_bytes)
        runs.append(run)
    if runs:
        config = sweep.configs[runs[0].name]
        config.activate()
        check_plan(config, slurm, make_data=True)  # data that the jobs would make, all at once
        ids = _queue(runs, config, slurm, RunFolder(sweep.folder.resolve()))
        array = f"array {ids[0].partition('_')[0]}" if len(ids) > 1 else f"job {ids[0]}"
        console.print(f"{array} is queued for {len(runs)} of {len(sweep.points)} points of {sweep.name}")
    else:
        console.print(f"sweep {sweep.name}: nothing to submit, {len(sweep.points)} points")
    console.print(
        f"  results   modlib sweep {sweep.folder}\n  status    modlib ls --runs_dir {sweep.folder}",
        soft_wrap=True,
    )
    return EXIT_OK


def _queue(runs: list[RunFolder], config: Config, slurm: Slurm, place: RunFolder, chain: int = 1) -> list[str]:
    """Snapshot the code and submit one job, or an array with one element per run; returns the ids.

    Args:
        runs: Prepared.
        config: Of the first of them; the code is the same for all.
        slurm: What to ask for.
        place: Where the snapshot and submitit's files go: the run's folder, or the sweep's.
        chain: Jobs one after the other.
    """
    if os.pathsep in str(place.path):
        raise ConfigError(
            f"runs_dir ({place.path.parent}) must not hold '{os.pathsep}', since the job's PYTHONPATH leads into it; "
            "choose another --runs_dir"
        )
    snapshot = take_snapshot(place, config)
    folder = place.path / SUBMITIT
    array_file = folder / f"runs-{uuid.uuid4().hex[:8]}.txt" if len(runs) > 1 else None
    if array_file is not None:
        folder.mkdir(mode=0o700, exist_ok=True)
        durable.atomic_write_text(array_file, "".join(f"{run.path}\n" for run in runs))
    paths = [run.path for run in runs]
    script = JobScript(slurm, place.name, paths, snapshot.python_paths, snapshot.path, Path.cwd(), folder, array_file)
    before = [run.read() for run in runs]
    with delayed():  # between sbatch and the record of its answer Ctrl-C would leave a job that nobody knows
        for run in runs:
            submitted = {
                "job_ids": [],
                "attempts_before": run.num_attempts,
                "code": snapshot.sha256,
                "config_sha256": hashlib.sha256(run.config_path.read_bytes()).hexdigest(),
            }
            run.update(
                status="queued", executor="slurm", world_size=slurm.world_size, excluded_hosts=[], slurm=submitted
            )
        try:
            ids = submit(script, run_task, chain)
        except BaseException:
            for run, state in zip(runs, before):
                run.update(status=state.get("status"), slurm=state.get("slurm", {}))
            raise
        for number, run in enumerate(runs):
            run.update(slurm={**run.read()["slurm"], "job_ids": ids[number :: len(runs)]})
    return ids


def job_script(slurm: Slurm, run_path: Path) -> str:
    """The script that `submit_run` would hand to sbatch, but for the folder of the snapshot, which is not taken yet."""
    code = run_path / "code" / "SNAPSHOT"
    return submitit_text(
        JobScript(slurm, run_path.name, [run_path], [code / "project"], code, Path.cwd(), run_path / SUBMITIT)
    )


def plain_script(config: Config, slurm: Slurm, run_path: Path) -> str:
    """A script for `sbatch` that runs the experiment without submitit on this side, with the code where it lies now.

    Args:
        config: Written into the script, which makes the run folder from it.
        slurm: What to ask for.
        run_path: The run folder.
    """
    paths = list(dict.fromkeys([SOURCE, *config.import_paths]))
    return JobScript(slurm, run_path.name, [run_path], paths, None, Path.cwd()).text(config.text)


def _submitted(run: RunFolder, ids: list[str]) -> str:
    where = quoted(str(run.path))
    chain = f", then {', '.join(ids[1:])}," if len(ids) > 1 else ""
    return (
        f"job {ids[0]}{chain} is queued for run {run.name}\n"
        f"  log      {run.path / SUBMITIT / f'{ids[0]}_0_log.out'}\n"
        f"  watch    modlib follow {where}\n"
        f"  status   modlib status {where}\n"
        f"  cancel   modlib cancel {where}"
    )


def _require_idle(run: RunFolder) -> None:
    """Refuse a second job for a run that one is queued for."""
    ids = _job_ids(run)
    if job := _active(run, job_states(ids) if ids else {}):
        raise RunFolderError(
            f"run {run.name} must have one job at a time, but job {job.job_id} is {job.state.lower()}; "
            f"wait for it, or end it with: modlib cancel {quoted(str(run.path))}"
        )


def _job_ids(run: RunFolder) -> list[str]:
    return list(run.read().get("slurm", {}).get("job_ids", []))


def _active(run: RunFolder, states: Mapping[str, JobState]) -> JobState | None:
    """The run's job that waits or runs."""
    return next((states[one] for one in _job_ids(run) if one in states and states[one].active), None)
