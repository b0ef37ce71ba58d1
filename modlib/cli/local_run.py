"""A run on this machine: plan, announce, train here or in several processes, sum up."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from pathlib import Path
from typing import Any

import gin
import torch
from rich.console import Console

from modlib.checkpointing.names import step_folders
from modlib.cli.worker import work
from modlib.config import Config
from modlib.launching.local import Local, run_local
from modlib.launching.prepare import Resume, default_name, prepare
from modlib.runtime.errors import EXIT_OK, EXIT_PREEMPTED
from modlib.runtime.hardware import disk_free_bytes
from modlib.runtime.logs import report_error, start_logging
from modlib.runtime.run_folder import Attempt, RunFolder
from modlib.tracking.banner import start_banner
from modlib.tracking.jsonl import read_lines
from modlib.tracking.plan import Plan
from modlib.tracking.summary import RunSummary, end_summary
from modlib.tracking.tensorboard import TENSORBOARD_FOLDER
from modlib.training.evaluation import build_evaluators
from modlib.training.experiment import Experiment
from modlib.training.plan import build, data_is_ready, device_peak, make_plan

WORKER = (sys.executable, "-m", "modlib.cli.worker")


def show_plan(config: Config, runs_dir: Path, name: str | None, *, as_json: bool) -> None:
    """Check and plan for the target world size, and print the plan; writes nothing."""
    _, plan = _planned(config, runs_dir, name, make_data=False)
    if as_json:
        print(json.dumps(plan.to_json(), indent=1))
    else:
        Console().print(start_banner(plan))


def train_here(config: Config, *, runs_dir: Path, name: str | None, resume: Resume) -> int:
    """Plan, prepare the run folder, announce, train, and sum up; returns the exit code."""
    start_logging()
    local, plan = _planned(config, runs_dir, name, make_data=True)
    run = prepare(config, runs_dir=runs_dir, name=name, resume=resume, needed_bytes=plan.checkpoint_bytes)
    console = Console(stderr=True)
    with run.lock():
        state = run.read()
        if state.get("status") == "finished" and state.get("step", 0) >= plan.num_steps:
            console.print(f"run {run.name} is finished: {state['step']} steps are done and saved in {run.path}")
            return EXIT_OK
        console.print(start_banner(dataclasses.replace(plan, start_step=state.get("step", 0))))
        attempt = run.begin_attempt()
        run.update(world_size=local.num_processes)
        started = time.monotonic()
        code = _train(config, local, run, attempt)
        after = run.read()
        status = {EXIT_OK: "finished", EXIT_PREEMPTED: "stopped"}.get(code, "failed")
        run.update(status=status, exit_code=code)
        attempt.finish(status, after.get("step"), code)
        if status != "failed":
            console.print(end_summary(_summary(plan, run, after, status, time.monotonic() - started)))
    return code


def _planned(config: Config, runs_dir: Path, name: str | None, *, make_data: bool) -> tuple[Local, Plan]:
    config.activate()
    local: Local = build(config, gin.get_configurable("Local"))
    experiment: Experiment = build(config, gin.get_configurable("train"))
    dataset, evaluators = None, []
    if make_data or data_is_ready(config):
        dataset = build(config, experiment.dataset)
        evaluators = build(config, build_evaluators, experiment.evaluators)
    peak = device_peak(experiment, remember=make_data)
    plan = make_plan(experiment, config, local.num_processes, dataset, evaluators, peak)
    path = Path(runs_dir) / (default_name(config) if name is None else name)
    outputs = {
        "run folder": path,
        "metrics": path / "metrics.jsonl",
        "TensorBoard": path / "tb",
        "checkpoints": path / "checkpoints",
    }
    free = disk_free_bytes(Path(runs_dir))
    return local, dataclasses.replace(plan, run_name=path.name, outputs=outputs, disk_free_bytes=free)


def _train(config: Config, local: Local, run: RunFolder, attempt: Attempt) -> int:
    if local.num_processes > 1:
        return run_local(WORKER, local, run, attempt)
    if config.resolved["Local.threads_per_process"] is not None:
        torch.set_num_threads(local.threads_per_process)
    try:
        outcome = work(config, run, attempt)
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
        if mean_rate and plan.peak_flops
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
        command=sys.argv,
        tokens_per_s=mean_rate,
        mfu=mfu,
        mfu_of=plan.peak_source,
        values=values,
        checkpoints=[path for _, path in reversed(step_folders(run.checkpoints_path))],
        sample=state.get("sample"),
        has_metrics=run.metrics_path.exists(),
        has_curves=(run.path / TENSORBOARD_FOLDER).exists(),
        writes_text=str(plan.resolved.get("train.sample")) in ("None", "@TextSample"),
    )
