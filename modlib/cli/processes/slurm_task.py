"""One rank of a SLURM job, started by srun through submitit or as

python -m modlib.cli.processes.slurm_task RUN_FOLDER
"""

from __future__ import annotations

import logging
import os
import sys
from contextlib import nullcontext
from functools import partial
from pathlib import Path

from modlib.runtime import bookkeeping
from modlib.runtime.errors import EXIT_CHECKPOINT, EXIT_OK, StoppedEarly
from modlib.runtime.logs import report_error, start_logging
from modlib.runtime.run_folder import RunFolder
from modlib.runtime.run_lock import this_process
from modlib.runtime.signals import StopRequest
from modlib.runtime.streams import secure_streams

logger = logging.getLogger("modlib")

DEFAULT_GRACE_S = 25.0  # SLURM's KillWait is 30 s where a site says nothing else
HANDOVER_S = 10.0  # of the lead before the time limit, what is left for queueing the job again


def run_task(run_path: str) -> None:
    """Train as this task of the job. Ends the process with the exit code of the error's class, if there is one.

    Args:
        run_path: The run folder; the only thing that a submission passes on.
    """
    secure_streams()
    rank, size = int(os.environ["SLURM_PROCID"]), int(os.environ["SLURM_NTASKS"])
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": os.environ["SLURM_LOCALID"],
        "WORLD_SIZE": str(size),
        "LOCAL_WORLD_SIZE": str(len([h for h in _hosts() if h == _hosts()[rank]])),
    }
    run = RunFolder(Path(run_path))
    attempt = run.attempt(int(os.environ["MODLIB_ATTEMPT"]))
    start_logging(rank=rank, world_size=size, log_file=attempt.log_path(rank))
    # before torch is imported, since a signal in these seconds counts too; and to the process's end, since submitit's
    # own handlers would come back
    stop = _stop_request(attempt.stacks_path(rank)).install()
    report = partial(report_error, record_path=attempt.error_path(rank), rank=rank)
    try:
        from modlib.cli.processes.worker import work
        from modlib.config import load

        with run.lock(lost=report) if rank == 0 else nullcontext():
            if rank == 0:
                run.note(**{**this_process(), "host": _hosts()[0]})
            else:
                run.pin()
            outcome = work(load([run.config_path]), run, attempt, stop=stop, hung=report)
            if rank == 0:
                run.note(status=outcome.reason, lost_steps=0)
                for line in (*outcome.incomplete, *bookkeeping.losses()):
                    logger.warning("incomplete: %s", line)
        if outcome.reason == "finished" and outcome.lost_metrics:
            sys.exit(EXIT_CHECKPOINT)
    except StoppedEarly as early:
        report(early)
        if rank == 0:
            run.note(status="stopped", lost_steps=0)
    except BaseException as error:
        code = report(error)
        if code != EXIT_OK:
            sys.exit(code)


def _hosts() -> list[str]:
    return os.environ["MODLIB_HOSTS"].split(",")


def _stop_request(stacks_path: Path) -> StopRequest:
    lead_s = float(os.environ.get("MODLIB_LEAD_S") or 0)
    end_time = float(os.environ.get("MODLIB_END_TIME") or 0)
    return StopRequest(
        grace_s=float(os.environ.get("MODLIB_GRACE_S") or DEFAULT_GRACE_S),
        warning_grace_s=max(lead_s - HANDOVER_S, HANDOVER_S),
        stop_at=end_time - lead_s if end_time and lead_s else None,
        stacks_path=stacks_path,
        starting=True,
    )


if __name__ == "__main__":
    run_task(sys.argv[1])
