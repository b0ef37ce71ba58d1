"""One rank of a run: `python -m modlib.cli.worker RUN_FOLDER`, started by a launcher; or called in this process."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import gin

from modlib.config import Config, load
from modlib.distributed.meeting import this_host
from modlib.distributed.preflight import preflight, raise_on_fatal
from modlib.distributed.process_group import COLLECTIVE_TIMEOUT_S, World, process_group
from modlib.launching.local import die_with_parent
from modlib.runtime.errors import HangError, Preempted
from modlib.runtime.logs import report_error, start_logging
from modlib.runtime.run_folder import Attempt, RunFolder
from modlib.runtime.signals import StopRequest
from modlib.runtime.streams import secure_streams
from modlib.runtime.watchdog import UNHURRIED, Watchdog
from modlib.training.experiment import Experiment
from modlib.training.job import Job
from modlib.training.plan import build
from modlib.training.train import Outcome, train

logger = logging.getLogger("modlib")


def work(
    config: Config,
    run: RunFolder,
    attempt: Attempt,
    *,
    stop: StopRequest | None = None,
    hung: Callable[[HangError], object],
) -> Outcome:
    """Train as this rank of the world that the environment describes.

    Args:
        config: The run's.
        run: Its folder.
        attempt: This attempt.
        stop: Installed already, where a launcher has its own limits; None: one for this machine.
        hung: Called by another thread with what to report right before this process ends because it hangs.

    Raises:
        ModlibError: Whatever stopped the run.
    """
    config.activate()
    experiment: Experiment = build(config, gin.get_configurable("train"))
    limit_s = experiment.hang_limit_s
    # Collectives outlast the watchdog, which knows more of a hang than they do.
    with process_group(timeout_s=max(COLLECTIVE_TIMEOUT_S, 2 * UNHURRIED * (limit_s or 0.0))) as world:
        start_logging(rank=world.rank, world_size=world.size, log_file=attempt.log_path(world.rank))
        _check_hosts(world, run)
        installed = StopRequest(stacks_path=attempt.stacks_path(world.rank)) if stop is None else nullcontext(stop)
        hosts = world.meeting.hosts if world.meeting else [this_host()]
        watchdog = Watchdog(limit_s, stacks_path=attempt.stacks_path, rank=world.rank, hosts=hosts, ended=hung)
        with installed as stop_request, watchdog:
            outcome = train(experiment, Job(config, run, attempt, world, stop_request, watchdog))
        if world.rank == 0:
            run.update(step=outcome.step, sample=outcome.sample)
        return outcome


def _check_hosts(world: World, run: RunFolder) -> None:
    """Look at all hosts before training on them; what is wrong but bearable is said once.

    Raises:
        ClusterError: What they have would spoil the run.
    """
    started = time.monotonic()
    cores = os.environ.get("SLURM_CPUS_PER_TASK")
    findings = preflight(
        world,
        folder=run.path,
        cpus_per_task=int(cores) if cores else None,
        needed_bytes=run.read().get("checkpoint_bytes", 0),
    )
    if world.rank == 0:
        for finding in findings:
            logger.warning("preflight: %s", finding.what)
    if world.rank == 0 and world.size > 1:
        hosts = ", ".join(dict.fromkeys(world.meeting.hosts)) if world.meeting else ""
        logger.info("preflight of %d ranks on %s took %.1f s", world.size, hosts, time.monotonic() - started)
    raise_on_fatal(findings)


def main() -> None:
    """Entry point of a worker process; its exit code tells how the rank ended."""
    die_with_parent()
    secure_streams()
    run = RunFolder(Path(sys.argv[1]))
    attempt = run.current_attempt()
    rank, size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    start_logging(rank=rank, world_size=size, log_file=attempt.log_path(rank))  # also for errors before `work`
    report = partial(report_error, record_path=attempt.error_path(rank), rank=rank)
    try:
        outcome = work(load([run.config_path]), run, attempt, hung=report)
        if outcome.reason == "stopped":
            raise Preempted(f"stopped at step {outcome.step}, which is saved; the same command continues")
    except BaseException as error:
        sys.exit(report(error))


if __name__ == "__main__":
    main()
