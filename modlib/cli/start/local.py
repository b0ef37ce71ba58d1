"""A run on this machine: plan, announce, train here or in several processes, sum up."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import sys
import time
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import torch

from modlib.checkpointing.names import step_folders
from modlib.checkpointing.run_checkpoints import newest_saved
from modlib.cli.processes.worker import work
from modlib.cli.report import finished_text
from modlib.cli.start.planning import plan_run
from modlib.config import Config
from modlib.config.variation import variation
from modlib.launching.command import own_call
from modlib.launching.continuing import Resume, is_finished
from modlib.launching.ending import lost_steps
from modlib.launching.lengthening import Change
from modlib.launching.local import Local, run_local
from modlib.launching.prepare import prepare
from modlib.runtime import bookkeeping
from modlib.runtime.console import PlainConsole
from modlib.runtime.errors import (
    EXIT_CHECKPOINT,
    EXIT_OK,
    EXIT_PREEMPTED,
    STOPPED,
    ModlibError,
    RunFolderError,
    StoppedEarly,
)
from modlib.runtime.kept import what_is_kept
from modlib.runtime.logs import report_error, start_logging
from modlib.runtime.run_folder import Attempt, RunFolder
from modlib.runtime.signals import StopRequest, delayed, installed
from modlib.runtime.units import counted
from modlib.tracking.banner import start_banner
from modlib.tracking.results import Results
from modlib.tracking.run_plan import Plan
from modlib.tracking.summary import RunSummary, end_summary
from modlib.tracking.tensorboard import TENSORBOARD_FOLDER
from modlib.training.train import Outcome

logger = logging.getLogger("modlib")

WORKER = (sys.executable, "-m", "modlib.cli.processes.worker")


def train_here(
    config: Config, local: Local, *, runs_dir: Path, name: str, resume: Resume, change: Change | None = None
) -> int:
    """Plan, prepare the run folder, announce, train, and sum up; returns the exit code."""
    start_logging()
    plan = plan_run(config, local, runs_dir, name, make_data=True)
    needed = plan.checkpoint_bytes
    run = prepare(config, runs_dir=runs_dir, name=name, resume=resume, needed_bytes=needed, change=change)
    console = PlainConsole(stderr=True)
    with run.lock(lost=partial(_put_on_record, run)):
        state = run.read()
        if is_finished(run, plan.num_steps, resume):
            console.print(finished_text(run, state["step"]), soft_wrap=True)
            return EXIT_OK
        saved = newest_saved(run)
        start = 0 if saved is None else saved.step
        console.print(start_banner(dataclasses.replace(plan, start_step=start)))
        bookkeeping.begin()
        started = time.monotonic()
        outcome = None
        try:
            with delayed():  # an attempt that has begun is also ended
                attempt = run.begin_attempt()
                run.note(world_size=local.world_size, executor="local")
            code, outcome = _train(config, local, run, attempt)
        except StoppedEarly as early:
            early.kept = f"{what_is_kept(start, 0)}; the same command continues"
            code = report_error(early)
        if outcome is not None and outcome.reason == "finished":  # and all of it is saved
            code = EXIT_CHECKPOINT if outcome.lost_metrics else EXIT_OK
            status = "finished"
        else:
            status = "finished" if code == EXIT_OK else "stopped" if code in STOPPED else "failed"
        step = run.read().get("step", 0) if outcome is None else outcome.step
        run.note(status=status, exit_code=code, lost_steps=lost_steps(run, attempt) if status == "stopped" else 0)
        attempt.finish(status, step, code)
        if status != "failed":
            seconds = time.monotonic() - started
            console.print(end_summary(_summary(config, plan, run, step, outcome, status, seconds)))
        if outcome is not None and outcome.lost_metrics:
            lines = counted(outcome.lost_metrics, "line")
            logger.warning("%s of %s could not be written and are lost; checkpoints are whole", lines, run.metrics_path)
    return code


def _train(config: Config, local: Local, run: RunFolder, attempt: Attempt) -> tuple[int, Outcome | None]:
    """The exit code, and what came of it where that was told."""
    if local.num_processes > 1:
        descriptor = os.memfd_create("modlib-outcome")  # in memory: there may be no room elsewhere
        try:
            code = run_local(WORKER, local, run, attempt, outcome=descriptor)
            told = os.pread(descriptor, os.fstat(descriptor).st_size, 0)
        finally:
            os.close(descriptor)
        return code, Outcome.of(told) if told else None
    if config.resolved["Local.threads_per_process"] is not None:
        torch.set_num_threads(local.threads_per_process)

    try:
        with nullcontext(stop) if (stop := installed()) else StopRequest(starting=True) as stop:
            outcome = work(config, run, attempt, stop=stop, hung=partial(_put_on_record, run))
    except StoppedEarly:
        raise
    except BaseException as error:
        return report_error(error), None
    finally:
        start_logging()
    return EXIT_OK if outcome.reason == "finished" else EXIT_PREEMPTED, outcome


def _put_on_record(run: RunFolder, error: ModlibError) -> None:
    """Say and record what ends this process, which another of its threads does right after this."""
    code = report_error(error)
    holder = run.holder()
    if holder is None or holder.get("pid") == os.getpid():  # else it is another trainer's folder by now
        with contextlib.suppress(OSError, RunFolderError):
            run.update(status="failed", exit_code=code)
            run.current_attempt().finish("failed", run.read().get("step"), code)


def _summary(
    config: Config, plan: Plan, run: RunFolder, step: int, outcome: Outcome | None, status: str, seconds: float
) -> RunSummary:
    results = Results.until(run.path) if outcome is None else outcome.results
    mean_rate = results.tokens_per_s
    return RunSummary(
        run_name=run.name,
        run_path=run.path,
        reason=status,
        step=step,
        num_steps=plan.num_steps,
        tokens=step * plan.tokens_per_step,
        seconds=seconds,
        command=[] if "MODLIB_REPRODUCING" in os.environ else own_call(),  # its code lies in a folder that goes away
        change=variation(config),
        tokens_per_s=mean_rate,
        mfu=plan.mfu(mean_rate) if mean_rate else None,
        mfu_of=plan.peak_source,
        values=results.values,
        best=results.best,
        checkpoints=[path for _, path in reversed(step_folders(run.checkpoints_path))],
        sample=None if outcome is None else outcome.sample,
        incomplete=[*(outcome.incomplete if outcome else ()), *bookkeeping.losses()],
        has_metrics=run.metrics_path.exists(),
        has_curves=(run.path / TENSORBOARD_FOLDER).exists(),
        writes_text=str(plan.resolved.get("train.sample")) in ("None", "@TextSample")
        and bool(plan.dataset.get("has_tokenizer")),
    )
