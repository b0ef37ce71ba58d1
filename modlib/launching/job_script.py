"""The script of a SLURM job: a header of options, then the run's life around one srun.

The same lines serve a job that submitit sends and a script that is handed to sbatch by hand; only the command that
srun starts differs.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from modlib.launching.slurm import Slurm
from modlib.runtime.errors import ConfigError
from modlib.runtime.secrets import mask, why_secret

TASK = "modlib.cli.processes.slurm_task"


@dataclass(frozen=True)
class JobScript:
    """What a job needs to know to run an experiment.

    Args:
        slurm: What to ask for.
        name: The job's name.
        runs: The run folder; of an array of jobs, one for each element.
        code_paths: Folders for PYTHONPATH: the snapshot of the code.
        code: The snapshot, which the job verifies; None: the code as it lies there when the job starts.
        working_directory: Where relative paths of the config lead from.
        folder: Of submitit's files: scripts, payloads and logs; None: the script does without submitit.
        array_file: Lists the run folders of an array, one per line.
    """

    slurm: Slurm
    name: str
    runs: Sequence[Path]
    code_paths: Sequence[Path]
    code: Path | None
    working_directory: Path
    folder: Path | None = None
    array_file: Path | None = None

    @property
    def python(self) -> str:
        """The interpreter of the job's own lines; Slurm.python is the container's, where there is one."""
        return shlex.quote((self.slurm.container is None and self.slurm.python) or sys.executable)

    @property
    def rank_python(self) -> str:
        """The interpreter of the ranks: the job's own, or the container's."""
        container = self.slurm.container
        if container is None:
            return self.python
        if len(shlex.split(container)) > 1 or Path(container).suffix != ".sif":  # a command prefix of the user's
            return f"{container} {shlex.quote(self.slurm.python or 'python3')}"
        folders = {self.working_directory, *(run.parent for run in self.runs), *self.code_paths}
        binds = sorted(str(folder) for folder in folders if folders.isdisjoint(folder.parents))
        gpus = ["--nv"] if self.slurm.gpus_per_node else []
        words = ["apptainer", "exec", *gpus, "--bind", ",".join(binds), container, self.slurm.python or "python3"]
        return shlex.join(words)

    def before(self) -> list[str]:
        """Lines before srun.

        Raises:
            ConfigError: One of them would write a secret down.
        """
        if self.array_file is None:
            run = [f"export MODLIB_RUN={shlex.quote(str(self.runs[0]))}"]
        else:
            listed = shlex.quote(str(self.array_file))
            run = [f'export MODLIB_RUN="$(sed -n "$((SLURM_ARRAY_TASK_ID + 1))p" {listed})"']
        variables = {
            **self.slurm.variables(),
            "PYTHONPATH": os.pathsep.join(map(str, self.code_paths)),
            "PYTHONSAFEPATH": "1",
            "PYTHONUNBUFFERED": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
            "MODLIB_LEAD_S": str(self.slurm.signal_lead_s),
            **({} if self.slurm.exclude is None else {"MODLIB_EXCLUDE": self.slurm.exclude}),
            **({} if self.code is None else {"MODLIB_CODE": str(self.code)}),
            **({} if self.folder is None else {"MODLIB_SUBMITIT": str(self.folder)}),
        }
        lines = [
            *run,
            f"cd {shlex.quote(str(self.working_directory))} || exit 1",
            *self.slurm.setup,
            *(f"export {name}={shlex.quote(value)}" for name, value in variables.items()),  # after modules
            "trap : TERM USR2  # the ranks save upon these; this shell waits for them",
            f'eval "$({self.python} -m modlib.cli.processes.slurm_job begin "$MODLIB_RUN" || echo exit 1)"',
        ]
        return _without_secrets(lines)

    def after(self) -> list[str]:
        """Lines after srun; the first reads its exit status."""
        return [
            "status=$?",
            "trap '' TERM USR2",
            f'exec {self.python} -m modlib.cli.processes.slurm_job end "$MODLIB_RUN" "$status"',
        ]

    def text(self, config_text: str) -> str:
        """The whole script for `sbatch`, without submitit; it makes the run folder where there is none.

        Args:
            config_text: The complete config.gin.

        Raises:
            ConfigError: It would hold a secret.
        """
        run = self.runs[0]
        options = self.slurm.options(self.name) | {"output": self.working_directory / f"{self.name}-%j.out"}
        before = self.before()
        srun = shlex.join(["srun", "--unbuffered", *self.slurm.srun()])
        lines = [
            "#!/bin/bash",
            *(sbatch_line(name, options[name]) for name in sorted(options)),
            "",
            *before[:-1],
            f"export MODLIB_SCRIPT={shlex.quote(str(run / 'sbatch.sh'))}",
            "unset MODLIB_CODE  # of another job, where this one was submitted from inside it",
            f"{self.python} -m modlib.cli.processes.slurm_job prepare \"$MODLIB_RUN\" <<'CONFIG' || exit $?",
            config_text.rstrip(),
            "CONFIG",
            'cp "$0" "$MODLIB_SCRIPT" || exit 4  # for a successor, should it need one',
            before[-1],
            "",
            f'{srun} {self.rank_python} -m {TASK} "$MODLIB_RUN"',
            "",
            *self.after(),
            "",
        ]
        return "\n".join(_without_secrets(lines))


def _without_secrets(lines: list[str]) -> list[str]:
    """The lines, where none holds a secret: whoever can read the queue can read the script."""
    for line in lines:
        name, _, value = line.removeprefix("export ").partition("=")
        words = line.split("\n", 1)[0][:40]
        if why := why_secret("", line) or (line.startswith("export ") and why_secret(name, value)):
            raise ConfigError(
                f"the job's script must not hold {why}; it would be in the line that begins {mask(words)!r}: take it "
                "out of paths and settings, and set it in the shell that submits: SLURM passes the environment on"
            )
    return lines


def sbatch_line(name: str, value: object) -> str:
    """One option, as sbatch reads it."""
    return f"#SBATCH --{name}" if value is True else f"#SBATCH --{name}={shlex.quote(str(value))}"
