"""What a SLURM job's script calls on its first node.

python -m modlib.cli.processes.slurm_job VERB RUN_FOLDER [STATUS]
"""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path

from modlib.checkpointing.names import step_folders
from modlib.cli.report import error_text
from modlib.launching.batch_job import begin, end
from modlib.runtime import durable
from modlib.runtime.errors import EXIT_OK, ModlibError
from modlib.runtime.limits import as_limit
from modlib.runtime.logs import start_logging
from modlib.runtime.run_folder import RunFolder
from modlib.runtime.signals import ignore_stop_signals


def main() -> None:
    """`prepare` makes the run folder from the config on stdin, or sees that it is the same run; `begin` prints shell
    lines for the script to evaluate; `end` exits with the job's exit code.
    """
    ignore_stop_signals()  # they are sent to the whole job; this process has to finish its work
    verb, run = sys.argv[1], RunFolder(Path(sys.argv[2]))
    start_logging()
    try:
        if verb == "prepare":
            _prepare(run, sys.stdin.read())
            return
        if verb == "end":
            sys.exit(end(run, int(sys.argv[3])))
        variables = begin(run)
    except Exception as caught:
        error = caught if isinstance(caught, ModlibError) else as_limit(caught)
        if error is None:
            raise
        print(error_text(error), file=sys.stderr, flush=True)
        if verb != "begin":
            sys.exit(error.exit_code)
        print(f"exit {error.exit_code}")
        return
    if variables is None:
        print(f"run {run.name} is finished; there is nothing to do", file=sys.stderr, flush=True)
        print(f"exit {EXIT_OK}")
        return
    for name, value in variables.items():
        print(f"export {name}={shlex.quote(value)}")


def _prepare(run: RunFolder, config_text: str) -> None:
    """Do for a script without submitit what submitting does elsewhere: run folder, config, the job's number."""
    from modlib.config import load
    from modlib.launching.identity import identify
    from modlib.launching.prepare import prepare

    run.create()
    brought = run.path / "script.gin"
    durable.atomic_write_text(brought, config_text)
    ranks = int(os.environ.get("SLURM_NTASKS") or 1)  # of a script that leaves the global batch open
    config, name = identify(load([brought]), ranks, runs_dir=run.path.parent, name=run.name)
    change = None
    if step_folders(run.checkpoints_path):
        from modlib.cli.start.longer import change_of

        change = change_of(config, run, None, None)
    prepare(config, runs_dir=run.path.parent, name=name, change=change)
    slurm, job_id = run.read().get("slurm", {}), os.environ["SLURM_JOB_ID"]
    job_ids = slurm.get("job_ids", [])
    if job_id not in job_ids:  # somebody called sbatch; neither queued again nor a successor
        run.update(
            executor="slurm", slurm={**slurm, "job_ids": [*job_ids, job_id], "attempts_before": run.num_attempts}
        )


if __name__ == "__main__":
    main()
