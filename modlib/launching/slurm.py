"""SLURM as a place to run: what to ask for, in the terms of sbatch."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from modlib.components import component
from modlib.runtime.errors import ConfigError, require_choices
from modlib.runtime.secrets import why_secret

Executor = Literal["local", "slurm"]
GpuOption = Literal["gpus-per-node", "gres", "none"]
TIME = re.compile(r"(?:(?P<days>\d+)-)?(?P<first>\d+)(?::(?P<second>\d+))?(?::(?P<third>\d+))?")
LEAST_LEAD_S = 20

# What a training process needs on any cluster; Slurm.environment comes after and wins.
ENVIRONMENT = {
    "TORCH_NCCL_ASYNC_ERROR_HANDLING": "1",  # a dead peer is an error, not a hang
    "NCCL_IB_TIMEOUT": "22",  # InfiniBand: wait out a short network hiccup (17 s instead of 4)
    "TOKENIZERS_PARALLELISM": "false",  # a warning per forked data worker otherwise
}


@component("launch", "launch", name="launch")
def launch(executor: Executor = "local") -> Executor:
    """Where `launch.py` runs an experiment when --executor does not say.

    Args:
        executor: "local": this machine; "slurm": a job on the cluster. Meant for site profiles.
    """
    return executor


@component("launch", "slurm", name="Slurm")
class Slurm:
    """A SLURM job: one task per GPU, or per process where there are none.

    Where nothing is said, None leaves the choice to the cluster.

    Args:
        partition: Partition, or several separated by commas.
        account: What to bill.
        qos: Quality of service.
        constraint: Node features, as in "a100&ib".
        nodes: Number of nodes.
        tasks_per_node: Ranks on each node. None: one per GPU, or one.
        gpus_per_node: GPUs on each node; each gets one rank.
        gpu_option: How GPUs are asked for: `--gpus-per-node=N`, `--gres=gpu:N`, or not at all, where the partition
            implies them or `extra` says more, as in {'gres': 'gpu:a100:4'}.
        cpus_per_task: CPU cores of each rank; also its number of threads.
        mem_gb: Memory of each node, in GB.
        time: Time limit, in sbatch's forms: "minutes", "hours:minutes:seconds", "days-hours", "days-hours:minutes".
        signal_lead_s: Seconds before the time limit at which the job starts to save and hand over; at least 20.
        exclude: Nodes not to use, as in "node3,node[7-9]".
        reservation: A reservation to run in.
        requeue: Whether the job may be queued again under its own number. False, for sites that forbid it: the job
            submits its successor.
        setup: Shell lines to run on the first node before anything else, as in ['module load cuda'].
        container: An Apptainer image (or a command prefix) to run Python in, with modlib's dependencies installed.
        python: The Python interpreter on the nodes. None: the one that submits, or `python3` in a container.
        environment: Environment variables of all ranks, as in {'NCCL_SOCKET_IFNAME': 'ib0'}.
        srun_options: More options of srun, by name, as in {'cpu-bind': 'cores'}.
        extra: More options of sbatch, by name without dashes; they win over the ones above.
    """

    def __init__(
        self,
        partition: str | None = None,
        account: str | None = None,
        qos: str | None = None,
        constraint: str | None = None,
        nodes: int = 1,
        tasks_per_node: int | None = None,
        gpus_per_node: int = 0,
        gpu_option: GpuOption = "gpus-per-node",
        cpus_per_task: int | None = None,
        mem_gb: int | None = None,
        time: str = "24:00:00",
        signal_lead_s: int = 120,
        exclude: str | None = None,
        reservation: str | None = None,
        requeue: bool = True,
        setup: Sequence[str] = (),
        container: str | None = None,
        python: str | None = None,
        environment: Mapping[str, str] | None = None,
        srun_options: Mapping[str, Any] | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        require_choices(gpu_option=(gpu_option, GpuOption))
        self.partition, self.account, self.qos, self.constraint = partition, account, qos, constraint
        self.nodes, self.gpus_per_node, self.gpu_option = nodes, gpus_per_node, gpu_option
        self.tasks_per_node = tasks_per_node if tasks_per_node is not None else max(1, gpus_per_node)
        self.cpus_per_task, self.mem_gb = cpus_per_task, mem_gb
        self.signal_lead_s, self.exclude, self.reservation, self.requeue = signal_lead_s, exclude, reservation, requeue
        self.setup, self.container, self.python = tuple(setup), container, python
        texts = {"setup": "\n".join(setup), "container": container or "", "extra": str(extra or {})}
        self.environment, self.srun_options = dict(environment or {}), dict(srun_options or {})
        self.extra = {name.replace("_", "-").lstrip("-"): value for name, value in (extra or {}).items()}
        self.minutes, problem = minutes_of(time)
        problems = [problem] if problem else []
        problems += [
            f"Slurm.{name} ({value}) must be at least {least}; set it to {least} or more"
            for name, value, least in (
                ("nodes", nodes, 1),
                ("tasks_per_node", self.tasks_per_node, 1),
                ("gpus_per_node", gpus_per_node, 0),
                ("cpus_per_task", cpus_per_task, 1),
                ("mem_gb", mem_gb, 1),
                ("signal_lead_s", signal_lead_s, LEAST_LEAD_S),
            )
            if value is not None and value < least
        ]
        if gpus_per_node and self.tasks_per_node != gpus_per_node:
            problems.append(
                f"Slurm.tasks_per_node ({tasks_per_node}) must equal Slurm.gpus_per_node ({gpus_per_node}), since each "
                "rank computes on one GPU; leave tasks_per_node out"
            )
        if not problem and signal_lead_s > 60 * self.minutes // 2:
            problems.append(
                f"Slurm.signal_lead_s ({signal_lead_s}) must be at most half of Slurm.time ({time}), or the job does "
                f"little but save; set it to {max(LEAST_LEAD_S, 60 * self.minutes // 2)} or less, or ask for more time"
            )
        problems += [
            f"Slurm.environment ({{{name!r}: ...}}) must not hold {why}, since it is written into the job's script; "
            "set it in the shell that submits: SLURM passes the environment on"
            for name, value in self.environment.items()
            if (why := why_secret(name, value))
        ]
        problems += [
            f"Slurm.{parameter} (...) must not hold {why}, since it is written into the job's script; set it in the "
            "shell that submits: SLURM passes the environment on"
            for parameter, text in texts.items()
            if (why := _why_secret(text))
        ]
        if problems:
            raise ConfigError(problems)

    @property
    def world_size(self) -> int:
        """Number of ranks."""
        return self.nodes * self.tasks_per_node

    def options(self, name: str) -> dict[str, Any]:
        """The options of sbatch, by name; True is a flag without a value.

        Args:
            name: The job's name.
        """
        options: dict[str, Any] = {
            "job-name": name,
            "nodes": self.nodes,
            "ntasks-per-node": self.tasks_per_node,
            "time": self.minutes,
            "open-mode": "append",
            "requeue" if self.requeue else "no-requeue": True,
            "signal": f"USR2@{self.signal_lead_s}",
        }
        for option in ("partition", "account", "qos", "constraint", "cpus_per_task", "exclude", "reservation"):
            if getattr(self, option) is not None:
                options[option.replace("_", "-")] = getattr(self, option)
        if self.mem_gb is not None:
            options["mem"] = f"{self.mem_gb}G"
        if self.gpus_per_node and self.gpu_option != "none":
            gres = self.gpu_option == "gres"
            options[self.gpu_option] = f"gpu:{self.gpus_per_node}" if gres else self.gpus_per_node
        return options | self.extra

    def srun(self) -> list[str]:
        """The options of srun: a failed task ends the others, and each gets the cores that were asked for."""
        # since SLURM 22.05 srun does not take --cpus-per-task from the job
        cores = [] if self.cpus_per_task is None else [f"--cpus-per-task={self.cpus_per_task}"]
        more = [
            f"--{name}" if value is True else f"--{name}={value}"
            for name, value in ((name.replace("_", "-"), value) for name, value in self.srun_options.items())
        ]
        return ["--kill-on-bad-exit=1", "--wait=120", *cores, *more]

    def variables(self) -> dict[str, str]:
        """The environment variables of all ranks."""
        threads = {} if self.cpus_per_task is None else {"OMP_NUM_THREADS": str(self.cpus_per_task)}
        return ENVIRONMENT | threads | self.environment


def _why_secret(text: str) -> str | None:
    """Why a line of shell holds a secret; what the shell fills in, as in `TOKEN=$(cat file)`, is not written down."""
    values = [(name, value) for name, value in re.findall(r"(\w+)=['\"]?(\S+)", text) if not value.startswith("$")]
    return next(filter(None, (why_secret(name, value) for name, value in values)), None) or why_secret("", text)


def minutes_of(time: str) -> tuple[int, str]:
    """A time limit in sbatch's forms as whole minutes, rounded up; and what is wrong with it, or ""."""
    found = TIME.fullmatch(time.strip())
    minutes = 0.0
    if found:
        parts = [int(part) for part in (found["first"], found["second"], found["third"]) if part is not None]
        if found["days"] is not None:  # days-hours[:minutes[:seconds]]
            hours, *rest = parts
            minutes = 1440 * int(found["days"]) + 60 * hours + _minutes(rest)
        elif len(parts) == 3:  # hours:minutes:seconds
            minutes = 60 * parts[0] + _minutes(parts[1:])
        else:  # minutes[:seconds]
            minutes = _minutes(parts)
    if minutes <= 0:
        return 1, (
            f"Slurm.time ({time!r}) must be a time limit as sbatch takes it: 'minutes', 'hours:minutes:seconds', "
            "'days-hours' or 'days-hours:minutes:seconds'; write for example '24:00:00'"
        )
    return math.ceil(minutes), ""


def _minutes(parts: Sequence[int]) -> float:
    return (parts[0] if parts else 0) + (parts[1] / 60 if len(parts) > 1 else 0.0)
