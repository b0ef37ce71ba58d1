"""A run on a SLURM cluster: plan it for its world, prepare the run folder, snapshot the code, submit."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from rich.console import Console

from modlib.cli.planning import plan_run
from modlib.cli.slurm_task import run_task
from modlib.config import Config
from modlib.launching.job_script import JobScript
from modlib.launching.prepare import SOURCE, Resume, prepare
from modlib.launching.scheduler import job_states
from modlib.launching.slurm import Slurm
from modlib.launching.snapshot import take_snapshot
from modlib.launching.submission import submit, submitit_text
from modlib.runtime.errors import EXIT_OK, RunFolderError
from modlib.runtime.logs import start_logging
from modlib.runtime.run_folder import RunFolder
from modlib.tracking.banner import start_banner

SUBMITIT = "submitit"


def submit_run(
    config: Config,
    slurm: Slurm,
    *,
    runs_dir: Path,
    name: str | None,
    resume: Resume,
    chain: int = 1,
    follow: bool = False,
) -> int:
    """Plan, prepare the run folder, announce, submit; the job does the rest. Returns the exit code."""
    start_logging()
    plan = plan_run(config, slurm, runs_dir, name, make_data=True)
    run = prepare(config, runs_dir=runs_dir, name=name, resume=resume, needed_bytes=plan.checkpoint_bytes)
    run = RunFolder(run.path.resolve())  # the job starts elsewhere
    console = Console(stderr=True)
    state = run.read()
    if state.get("status") == "finished" and state.get("step", 0) >= plan.num_steps:
        console.print(f"run {run.name} is finished: {state['step']} steps are done and saved in {run.path}")
        return EXIT_OK
    _require_idle(run)
    console.print(start_banner(dataclasses.replace(plan, start_step=state.get("step", 0))))
    snapshot = take_snapshot(run, config)
    script = JobScript(slurm, run.name, [run.path], snapshot.python_paths, snapshot.path, Path.cwd())
    run.update(
        status="queued",
        executor="slurm",
        num_steps=plan.num_steps,
        world_size=slurm.world_size,
        slurm={"job_ids": [], "attempts_before": run.num_attempts, "code": snapshot.sha256},
    )
    try:
        ids = submit(script, run_task, run.path / SUBMITIT, chain)
    except BaseException:
        run.update(status=state.get("status"), slurm=state.get("slurm", {}))
        raise
    run.update(slurm={**run.read()["slurm"], "job_ids": ids})
    console.print(_submitted(run, ids), markup=False, highlight=False, soft_wrap=True)
    return EXIT_OK


def job_script(config: Config, slurm: Slurm, run_path: Path) -> str:
    """The script that `submit_run` would hand to sbatch, but for the folder of the snapshot, which is not taken yet."""
    code = run_path / "code" / "SNAPSHOT"
    script = JobScript(slurm, run_path.name, [run_path], [code], code, Path.cwd())
    return submitit_text(script, run_path / SUBMITIT)


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
    chain = f", then {', '.join(ids[1:])}," if len(ids) > 1 else ""
    return (
        f"job {ids[0]}{chain} is queued for run {run.name}\n"
        f"  log      {run.path / SUBMITIT / f'{ids[0]}_0_log.out'}\n"
        f"  watch    modlib follow {run.path}\n"
        f"  status   modlib status {run.path}\n"
        f"  cancel   modlib cancel {run.path}"
    )


def _require_idle(run: RunFolder) -> None:
    """Refuse a second job for a run that one is queued for."""
    ids = run.read().get("slurm", {}).get("job_ids", [])
    states = job_states(ids).values() if ids else ()
    for state in states:
        if state.state in ("PENDING", "RUNNING", "COMPLETING", "SUSPENDED"):
            raise RunFolderError(
                f"run {run.name} must have one job at a time, but job {state.job_id} is {state.state.lower()}; "
                f"wait for it, or end it with: modlib cancel {run.path}"
            )
