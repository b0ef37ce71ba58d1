"""Sends a job script to SLURM, through submitit."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from modlib.launching.job_script import JobScript
from modlib.launching.local import clean_environment
from modlib.launching.scheduler import cancel
from modlib.runtime.errors import ModlibError

SBATCH_TIMEOUT_S = 60.0
_SILENT = ("nable to contact slurm controller", "Unknown host", "Could not establish a configuration source")
NOT_CHECKED = "not checked by SLURM"


class SubmissionError(ModlibError, RuntimeError):
    """SLURM did not take the job; nothing was queued."""


def submit(script: JobScript, task: Callable[[str], None], chain: int = 1) -> list[str]:
    """Queue a job, or an array with one job per run folder; returns the ids of the jobs, those of a chain in order.

    Args:
        script: What to run.
        task: What each rank calls with its run folder: an importable function, since it is pickled by name.
        chain: Jobs to start one after the other, each continuing the run of the one before.

    Raises:
        SubmissionError: SLURM refused, with its reason.
    """
    from submitit import SlurmExecutor

    if shutil.which("sbatch") is None or shutil.which("srun") is None:
        raise SubmissionError(
            "sbatch and srun must be on the PATH to submit to SLURM; log in to the cluster, load its module, or run "
            "here with --executor local"
        )
    assert script.folder is not None
    script.folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # the payload is a pickle: nobody else may write it
    executor = SlurmExecutor(script.folder, python=script.rank_python)
    executor.update_parameters(**_parameters(script))
    ids: list[str] = []
    with _clean_environment():
        for _ in range(chain):
            if ids:
                executor.update_parameters(dependency=f"afterany:{ids[-1].partition('_')[0]}")
            try:
                jobs = executor.map_array(task, [str(run) for run in script.runs])
            except Exception as error:  # submitit's errors of a failed command have no common class
                if ids:
                    cancel(ids)
                raise SubmissionError(f"SLURM must take the job, but {_reason(error)}; nothing is queued") from error
            ids += [job.job_id for job in jobs]
    return ids


def submitit_text(script: JobScript) -> str:
    """The very script that `submit` hands to sbatch; needs no SLURM here."""
    from submitit.slurm.slurm import _make_sbatch_string

    assert script.folder is not None
    command = f"{script.rank_python} -u -m submitit.core._submit {shlex.quote(str(script.folder))}"
    count = len(script.runs) if len(script.runs) > 1 else None
    return _make_sbatch_string(command, script.folder, map_count=count, **_parameters(script))


def slurm_would_take(text: str) -> str | None:
    """What `sbatch --test-only` says about a script: when it would start, or why no SLURM answers; None without sbatch.

    Raises:
        SubmissionError: SLURM would refuse it, with its reason.
    """
    try:
        with _clean_environment():
            done = subprocess.run(
                ["sbatch", "--test-only"], input=text, capture_output=True, text=True, timeout=SBATCH_TIMEOUT_S
            )
    except FileNotFoundError:
        return None
    except subprocess.TimeoutExpired:
        return f"{NOT_CHECKED}: sbatch --test-only has not answered within {SBATCH_TIMEOUT_S:g} s"
    said = done.stderr.strip()
    if done.returncode != 0:
        if any(words in said for words in _SILENT):
            return f"{NOT_CHECKED}: {said.replace('sbatch: ', '').splitlines()[-1]}"
        raise SubmissionError(f"SLURM would refuse the job: {said}; correct the Slurm settings that it names")
    return said.removeprefix("sbatch: ")


def _parameters(script: JobScript) -> dict[str, Any]:
    """What submitit is told: its own few parameters, and sbatch's options as they are."""
    slurm = script.slurm
    options = {name.replace("-", "_"): value for name, value in slurm.options(script.name).items()}
    return {
        "nodes": slurm.nodes,
        "ntasks_per_node": slurm.tasks_per_node,
        "time": slurm.minutes,
        "wckey": None,
        "stderr_to_stdout": True,
        "setup": script.before(),
        "teardown": script.after(),
        "srun_args": slurm.srun(),
        "additional_parameters": {name: value for name, value in options.items() if name != "open_mode"},
    }


@contextmanager
def _clean_environment() -> Iterator[None]:
    """Without what another job or launcher left in this shell: it would become the new job's."""
    leaking = {name: os.environ.pop(name) for name in set(os.environ) - set(clean_environment())}
    try:
        yield
    finally:
        os.environ.update(leaking)


def _reason(error: Exception) -> str:
    """sbatch's own words in submitit's error."""
    lines = [line.partition("error: ")[2] for line in str(error).splitlines() if "error: " in line]
    return "; ".join(dict.fromkeys(lines)) or str(error).strip() or type(error).__name__
