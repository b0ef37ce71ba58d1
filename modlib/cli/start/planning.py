"""Where a run goes, and what it will do there: the plan that is announced before anything starts."""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

import gin

from modlib.config import Config
from modlib.launching.identity import identify, own_run
from modlib.launching.local import Local
from modlib.launching.slurm import Executor, Slurm
from modlib.launching.working_directory import working_directory
from modlib.runtime.hardware import disk_free_bytes
from modlib.runtime.run_folder import RunFolder, check_name
from modlib.runtime.units import counted
from modlib.tracking.run_plan import Plan
from modlib.training.building import build, build_experiment
from modlib.training.evaluation import build_evaluators
from modlib.training.plan import device_peak, make_plan
from modlib.training.planned_data import data_is_ready


def place_of(config: Config, executor: Executor | None) -> Local | Slurm:
    """The machines that the run asks for: the flag decides, else the config's `launch.executor`."""
    config.activate()
    chosen = executor or build(config, gin.get_configurable("launch"))
    place: Local | Slurm = build(config, gin.get_configurable("Slurm" if chosen == "slurm" else "Local"))
    return place


def other_folder(config: Config, name: str | None) -> Path | None:
    """The folder that relative paths lead from, where a run's own config.gin is given and it began elsewhere."""
    run = own_run(config)
    if run is None or name not in (None, run.name):
        return None
    folder = working_directory(run)
    return None if folder == Path.cwd() else folder


def planned(
    config: Config, executor: Executor | None, runs_dir: Path, name: str | None, source: RunFolder | None = None
) -> tuple[Config, Local | Slurm, str]:
    """The configuration with the global batch of the run, active; where it goes; and the run's name.

    Raises:
        ConfigError: The run exists, and its global batch cannot be divided over this place's ranks.
    """
    place = place_of(config, executor)
    config, name = identify(config, place.world_size, runs_dir=runs_dir, name=name, source=source)
    config.activate()
    return config, place, name


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
    experiment = build_experiment(config)
    dataset, evaluators = None, []
    if make_data or (not without_data and data_is_ready(config)):
        dataset = build(config, experiment.dataset)
        evaluators = build_evaluators(experiment.evaluators, partial(build, config))
    threads = _threads_per_rank(config, place) if isinstance(place, Local) else None
    measured = device_peak(experiment, threads, remember=make_data) if peak else None
    return make_plan(experiment, config, place.world_size, dataset, evaluators, measured)


def plan_run(
    config: Config,
    place: Local | Slurm,
    runs_dir: Path,
    name: str,
    *,
    make_data: bool,
    without_data: bool = False,
) -> Plan:
    """The plan of one run, as it is announced.

    Args:
        config: Active, with its global batch.
        place: Where the run goes.
        runs_dir: Where its folder will be.
        name: Its name.
        make_data: Make data that does not exist yet; else it is left out of the checks.
        without_data: Leave data out of the checks even if it is there.
    """
    path = Path(runs_dir) / check_name(name)
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
    if isinstance(place, Local):
        return dataclasses.replace(plan, num_threads=_threads_per_rank(config, place) or plan.num_threads)
    return dataclasses.replace(plan, **_hardware(place))


def _threads_per_rank(config: Config, local: Local) -> int | None:
    """The CPU threads that a rank is given; None where the only one takes torch's number."""
    given = local.num_processes > 1 or config.resolved["Local.threads_per_process"] is not None
    return local.threads_per_process if given else None


def _hardware(slurm: Slurm) -> dict[str, Any]:
    what = "GPU" if slurm.gpus_per_node else "CPU rank"
    return {"device": f"{what} on {counted(slurm.nodes, 'SLURM node')}", "num_threads": slurm.cpus_per_task}
