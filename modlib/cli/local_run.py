"""A run on this machine: plan, announce, train here or in several processes, sum up."""

from __future__ import annotations

import dataclasses
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from modlib.checkpointing.names import step_folders
from modlib.cli.planning import plan_run
from modlib.cli.worker import work
from modlib.config import Config
from modlib.launching.local import Local, run_local
from modlib.launching.prepare import Resume, prepare
from modlib.runtime.errors import EXIT_OK, EXIT_PREEMPTED, HangError
from modlib.runtime.logs import report_error, start_logging
from modlib.runtime.run_folder import Attempt, RunFolder
from modlib.tracking.banner import start_banner
from modlib.tracking.jsonl import read_lines
from modlib.tracking.plan import Plan
from modlib.tracking.summary import RunSummary, end_summary
from modlib.tracking.tensorboard import TENSORBOARD_FOLDER

WORKER = (sys.executable, "-m", "modlib.cli.worker")


def train_here(config: Config, local: Local, *, runs_dir: Path, name: str | None, resume: Resume) -> int:
    """Plan, prepare the run folder, announce, train, and sum up; returns the exit code."""
    start_logging()
    plan = plan_run(config, local, runs_dir, name, make_data=True)
    run = prepare(config, runs_dir=runs_dir, name=name, resume=resume, needed_bytes=plan.checkpoint_bytes)
    console = Console(stderr=True)
    with run.lock():
        state = run.read()
        if state.get("status") == "finished" and state.get("step", 0) >= plan.num_steps:
            console.print(f"run {run.name} is finished: {state['step']} steps are done and saved in {run.path}")
            return EXIT_OK
        console.print(start_banner(dataclasses.replace(plan, start_step=state.get("step", 0))))
        attempt = run.begin_attempt()
        run.update(world_size=local.world_size, executor="local")
        started = time.monotonic()
        code = _train(config, local, run, attempt)
        after = run.read()
        status = {EXIT_OK: "finished", EXIT_PREEMPTED: "stopped"}.get(code, "failed")
        run.update(status=status, exit_code=code)
        attempt.finish(status, after.get("step"), code)
        if status != "failed":
            console.print(end_summary(_summary(plan, run, after, status, time.monotonic() - started)))
    return code


def _train(config: Config, local: Local, run: RunFolder, attempt: Attempt) -> int:
    if local.num_processes > 1:
        return run_local(WORKER, local, run, attempt)
    if config.resolved["Local.threads_per_process"] is not None:
        torch.set_num_threads(local.threads_per_process)

    def hung(error: HangError) -> None:
        code = report_error(error)
        run.update(status="failed", exit_code=code)
        attempt.finish("failed", run.read().get("step"), code)

    try:
        outcome = work(config, run, attempt, hung=hung)
    except BaseException as error:
        return report_error(error)
    finally:
        start_logging()
    return EXIT_OK if outcome.reason == "finished" else EXIT_PREEMPTED


def _summary(plan: Plan, run: RunFolder, state: dict[str, Any], status: str, seconds: float) -> RunSummary:
    values: dict[str, float] = {}
    rates: list[float] = []
    for line in read_lines(run.metrics_path) if run.metrics_path.exists() else ():  # a run may do without the file
        values.update({key: value for key, value in line.items() if "/" in key})
        rates += [line["throughput/tokens_per_s"]] if "throughput/tokens_per_s" in line else []
    step = int(state.get("step", 0))
    mean_rate = len(rates) / sum(1 / rate for rate in rates) if rates else None
    mfu = (
        plan.flops_per_token * mean_rate / (plan.peak_flops * plan.world_size)
        if mean_rate and plan.peak_flops and plan.flops_per_token
        else None
    )
    return RunSummary(
        run_name=run.name,
        run_path=run.path,
        reason=status,
        step=step,
        num_steps=plan.num_steps,
        tokens=step * plan.tokens_per_step,
        seconds=seconds,
        command=[] if "MODLIB_REPRODUCING" in os.environ else sys.argv,  # its code lies in a folder that goes away
        tokens_per_s=mean_rate,
        mfu=mfu,
        mfu_of=plan.peak_source,
        values=values,
        checkpoints=[path for _, path in reversed(step_folders(run.checkpoints_path))],
        sample=state.get("sample"),
        has_metrics=run.metrics_path.exists(),
        has_curves=(run.path / TENSORBOARD_FOLDER).exists(),
        writes_text=str(plan.resolved.get("train.sample")) in ("None", "@TextSample")
        and bool(plan.dataset.get("has_tokenizer")),
    )
