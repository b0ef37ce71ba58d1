"""`modlib resume`: the call that continues a run."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from modlib.checkpointing.names import step_folders
from modlib.cli.options import RUNS, RunArgument, RunsDir
from modlib.cli.report import finished_text, reported
from modlib.cli.watch.runs import executor, find_run, states_of
from modlib.launching.command import calling_words
from modlib.launching.working_directory import working_directory
from modlib.runtime.errors import RunFolderError
from modlib.runtime.run_folder import RunFolder
from modlib.runtime.shell import command_line, quoted


def command(run: RunArgument, runs_dir: RunsDir = RUNS) -> None:
    """Start a run again from its newest checkpoint: the same configuration, folder and executor."""
    with reported():
        found = find_run(run, runs_dir)
        require_resumable(found)
        if (step := finished_step(found)) is not None:
            print(finished_text(found, step), file=sys.stderr)
            return
        words, place = launch_command(found), working_directory(found)
        there = "" if place == Path.cwd() else f"cd {quoted(str(place))} && "
        print(there + command_line(words), file=sys.stderr, flush=True)
    sys.stdout.flush()
    os.chdir(place)  # which relative paths of its configuration lead from
    os.execv(words[0], words)  # this process becomes the launcher: signals and the exit code are its own


def finished_step(run: RunFolder) -> int | None:
    """The last step of a run that has nothing left to do, as its small files say; None where training must look."""
    from modlib.config.diff import recorded

    state, record = run.read(), recorded(run.path)
    if state.get("status") != "finished" or record is None:
        return None
    step = state.get("step")
    if str(step) != record["parameters"].get("train.num_steps", {}).get("value"):
        return None
    return next((saved for saved, _ in step_folders(run.checkpoints_path) if saved == step), None)


def require_resumable(run: RunFolder) -> None:
    """See that a run can be started again.

    Raises:
        RunFolderError: It has no configuration, it runs, or a job of it waits.
    """
    if not run.config_path.is_file():
        raise RunFolderError(f"run ({run.path}) must have a config.gin to be resumed; start it again")
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
    """The call that continues a run, from whatever folder."""
    words = [*calling_words(), "--gin_file", str(run.config_path.absolute()), "--name", run.name]
    words += ["--runs_dir", str(run.path.parent.absolute())]
    return words + (["--executor", "slurm"] if executor(run) == "slurm" else [])
