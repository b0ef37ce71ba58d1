"""`modlib resume`: the call that continues a run."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path

from modlib.cli.report import reported
from modlib.cli.runs import RunArgument, RunsDir, executor, find_run, states_of
from modlib.runtime.errors import RunFolderError
from modlib.runtime.run_folder import RunFolder

LAUNCH = Path(__file__).parents[2] / "launch.py"
# where modlib is installed without launch.py beside it
LAUNCH_CODE = "from modlib.cli.launch import main; main()"


def command(run: RunArgument, runs_dir: RunsDir = Path("runs")) -> None:
    """Start a run again from its newest checkpoint: the same configuration, folder and executor."""
    with reported():
        found = find_run(run, runs_dir)
        require_resumable(found)
        words = launch_command(found)
        print(shlex.join(words), file=sys.stderr, flush=True)
    sys.stdout.flush()
    os.execv(words[0], words)  # this process becomes the launcher: signals and the exit code are its own


def require_resumable(run: RunFolder) -> None:
    """See that a run can be started again.

    Raises:
        RunFolderError: It has no configuration, it runs, or a job of it waits.
    """
    if not run.config_path.is_file():
        raise RunFolderError(f"run ({run.path}) must have a config.gin to be resumed; start it with launch.py again")
    state = states_of([run])[0]
    active = state.job is not None and state.job.active
    if state.state in ("running", "queued") or (active and not state.is_over):
        how = "; ".join(filter(None, [state.state, state.why]))
        where = f" (process {state.pid} on {state.host})" if state.pid else ""
        raise RunFolderError(
            f"run ({run.name}) must not run or wait to be resumed, but is {how}{where}; "
            f"watch it with `modlib follow {run.name}`, or stop it with `modlib cancel {run.name}`"
        )


def launch_command(run: RunFolder) -> list[str]:
    """The call of launch.py that continues a run."""
    launch = [str(LAUNCH)] if LAUNCH.is_file() else ["-c", LAUNCH_CODE]
    words = [sys.executable, *launch, "--gin_file", str(run.config_path), "--name", run.name]
    words += ["--runs_dir", str(run.path.parent)]
    return words + (["--executor", "slurm"] if executor(run) == "slurm" else [])
