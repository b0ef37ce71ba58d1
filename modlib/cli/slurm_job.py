"""What a SLURM job's script calls on its first node: `python -m modlib.cli.slurm_job VERB RUN_FOLDER [STATUS]`."""

from __future__ import annotations

import shlex
import signal
import sys
import tempfile
from pathlib import Path

from modlib.cli.report import error_text
from modlib.launching.batch_job import begin, end
from modlib.runtime.errors import EXIT_OK, ModlibError
from modlib.runtime.logs import start_logging
from modlib.runtime.run_folder import RunFolder


def main() -> None:
    """`prepare` makes the run folder from the config on stdin, where there is none yet; `begin` prints shell lines for
    the script to evaluate; `end` exits with the job's exit code.
    """
    for number in (signal.SIGTERM, signal.SIGUSR2):  # sent to the whole job; this process has to finish its work
        signal.signal(number, signal.SIG_IGN)
    verb, run = sys.argv[1], RunFolder(Path(sys.argv[2]))
    start_logging()
    try:
        if verb == "prepare":
            _prepare(run, sys.stdin.read())
            return
        if verb == "end":
            sys.exit(end(run, int(sys.argv[3])))
        variables = begin(run)
    except ModlibError as error:
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
    if run.config_path.is_file():
        return
    from modlib.config import load
    from modlib.launching.prepare import prepare

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.gin"
        path.write_text(config_text)
        prepare(load([path]), runs_dir=run.path.parent, name=run.name)


if __name__ == "__main__":
    main()
