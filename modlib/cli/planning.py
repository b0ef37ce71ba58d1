"""Where a run goes, and what it will do there: the plan that is announced before anything starts."""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

import gin

from modlib.config import Config
from modlib.launching.local import Local
from modlib.launching.prepare import default_name
from modlib.launching.slurm import Executor, Slurm
from modlib.runtime.hardware import disk_free_bytes
from modlib.runtime.run_folder import check_name
from modlib.tracking.plan import Plan
from modlib.training.evaluation import build_evaluators
from modlib.training.experiment import Experiment
from modlib.training.plan import build, data_is_ready, device_peak, make_plan


def place_of(config: Config, executor: Executor | None) -> Local | Slurm:
    """The machines that the run asks for: the flag decides, else the config's `launch.executor`."""
    config.activate()
    chosen = executor or build(config, gin.get_configurable("launch"))
    place: Local | Slurm = build(config, gin.get_configurable("Slurm" if chosen == "slurm" else "Local"))
    return place


def check_plan(
    config: Config, place: Local | Slurm, *, make_data: bool = False, without_data: bool = False, peak: bool = False
) -> Plan:
    """Check everything for the place's world size, on the meta device.

    Args:
        config: Active.
        place: Where the run goes.
        make_data: Make data that does not exist yet; else it is left out of the checks.
        without_data: Leave data out of the checks even if it is there.
        peak: Measure what this machine can do, for the estimate of time.
    """
    experiment: Experiment = build(config, gin.get_configurable("train"))
    dataset, evaluators = None, []
    if make_data or (not without_data and data_is_ready(config)):
        dataset = build(config, experiment.dataset)
        evaluators = build_evaluators(experiment.evaluators, partial(build, config))
    measured = device_peak(experiment, remember=make_data) if peak else None
    return make_plan(experiment, config, place.world_size, dataset, evaluators, measured)


def plan_run(
    config: Config,
    place: Local | Slurm,
    runs_dir: Path,
    name: str | None,
    *,
    make_data: bool,
    without_data: bool = False,
) -> Plan:
    """The plan of one run, as it is announced.

    Args:
        config: Active.
        place: Where the run goes.
        runs_dir: Where its folder will be.
        name: Its name; None: the default.
        make_data: Make data that does not exist yet; else it is left out of the checks.
        without_data: Leave data out of the checks even if it is there.
    """
    path = Path(runs_dir) / check_name(default_name(config) if name is None else name)
    here = isinstance(place, Local)  # else this is not the machine that trains
    plan = check_plan(config, place, make_data=make_data, without_data=without_data, peak=here)
    outputs = {
        "run folder": path,
        "metrics": path / "metrics.jsonl",
        "TensorBoard": path / "tb",
        "checkpoints": path / "checkpoints",
    }
    free = disk_free_bytes(Path(runs_dir))
    plan = dataclasses.replace(plan, run_name=path.name, outputs=outputs, disk_free_bytes=free)
    return plan if isinstance(place, Local) else dataclasses.replace(plan, **_hardware(place))


def _hardware(slurm: Slurm) -> dict[str, Any]:
    what = "GPU" if slurm.gpus_per_node else "CPU rank"
    return {"device": f"{what} on {slurm.nodes} SLURM node(s)", "num_threads": slurm.cpus_per_task}
