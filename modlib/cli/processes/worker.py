"""One rank of a run, called in this process or started by a launcher as

python -m modlib.cli.processes.worker RUN_FOLDER
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from modlib.runtime import bookkeeping
from modlib.runtime.errors import HangError, Preempted, StoppedEarly
from modlib.runtime.kept import what_is_kept
from modlib.runtime.logs import report_error, start_logging
from modlib.runtime.run_folder import Attempt, RunFolder
from modlib.runtime.signals import STOP_AFTER, StopRequest, answered
from modlib.runtime.streams import secure_streams

if TYPE_CHECKING:  # imported where they are used: until then a signal is answered at once
    from modlib.config import Config
    from modlib.distributed.process_group import World
    from modlib.training.train import Outcome

logger = logging.getLogger("modlib")


def work(
    config: Config,
    run: RunFolder,
    attempt: Attempt,
    *,
    stop: StopRequest,
    hung: Callable[[HangError], object],
) -> Outcome:
    """Train as this rank of the world that the environment describes.

    Args:
        config: The run's.
        run: Its folder.
        attempt: This attempt.
        stop: Installed already, since a signal in the time before this counts too.
        hung: Called by another thread with what to report right before this process ends because it hangs.

    Raises:
        ModlibError: Whatever stopped the run.
        StoppedEarly: A signal before the first step.
    """
    try:
        return _work(config, run, attempt, stop, hung)
    except StoppedEarly as early:
        early.kept = f"{what_is_kept(run.read().get('step', 0), 0)}; the same command continues"
        raise
    finally:
        stop.over()


def _work(
    config: Config, run: RunFolder, attempt: Attempt, stop: StopRequest, hung: Callable[[HangError], object]
) -> Outcome:
    from modlib.distributed.meeting import this_host
    from modlib.distributed.process_group import COLLECTIVE_TIMEOUT_S, process_group
    from modlib.runtime.watchdog import UNHURRIED, Watchdog
    from modlib.training.building import build_experiment
    from modlib.training.job import Job
    from modlib.training.train import train

    experiment = build_experiment(config)
    limit_s = experiment.hang_limit_s
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        stop.note_only()  # what is raised in one rank would leave the others alone in a collective; they agree later
    # Collectives outlast the watchdog, which knows more of a hang than they do.
    with process_group(timeout_s=max(COLLECTIVE_TIMEOUT_S, 2 * UNHURRIED * (limit_s or 0.0))) as world:
        start_logging(rank=world.rank, world_size=world.size, log_file=attempt.log_path(world.rank))
        stop.stacks_path = attempt.stacks_path(world.rank)
        stop.begins(run.read().get("step", 0))
        if world.rank == 0:
            stop.last_words = partial(record_hard_end, run, attempt, stop)
        _check_hosts(world, run)
        hosts = world.meeting.hosts if world.meeting else [this_host()]
        with Watchdog(limit_s, stacks_path=attempt.stacks_path, rank=world.rank, hosts=hosts, ended=hung) as watchdog:
            outcome = train(experiment, Job(config, run, attempt, world, stop, watchdog, _stop_after()))
        if world.rank == 0:
            run.note(step=outcome.step, sample=outcome.sample, lost_metrics=outcome.lost_metrics)
        return outcome


def record_hard_end(run: RunFolder, attempt: Attempt, stop: StopRequest, code: int) -> None:
    """Put on record that a process ends without its main thread, and what that costs."""
    run.note(status="stopped", exit_code=code, step=stop.saved, lost_steps=stop.lost)
    attempt.finish("stopped", stop.saved, code)


def _stop_after() -> int | None:
    step = os.environ.get(STOP_AFTER, "")
    return int(step) if step.isdecimal() else None


def _check_hosts(world: World, run: RunFolder) -> None:
    """Look at all hosts before training on them; what is wrong but bearable is said once.

    Raises:
        ClusterError: What they have would spoil the run.
    """
    from modlib.distributed.preflight import preflight, raise_on_fatal

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
    with answered() as stop:
        from modlib.launching.local import die_with_parent, tell_launcher

        die_with_parent()
        secure_streams()
        run = RunFolder(Path(sys.argv[1]))
        run.pin()
        attempt = run.current_attempt()
        rank, size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
        start_logging(rank=rank, world_size=size, log_file=attempt.log_path(rank))  # also for errors before `work`
        report = partial(report_error, record_path=attempt.error_path(rank), rank=rank)
        try:
            from modlib.config import load

            outcome = work(load([run.config_path]), run, attempt, stop=stop, hung=report)
            tell_launcher(replace(outcome, incomplete=[*outcome.incomplete, *bookkeeping.losses()]).to_json())
            if outcome.reason == "stopped":
                raise Preempted(f"stopped at step {outcome.step}, which is saved; the same command continues")
        except BaseException as error:
            sys.exit(report(error))


if __name__ == "__main__":
    main()
