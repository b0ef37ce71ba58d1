"""`modlib reproduce`: run a run again from its folder alone, with the code it was made with, and compare."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from modlib.cli.options import RUNS, RunArgument, RunsDir
from modlib.cli.report import reported
from modlib.cli.watch.runs import find_run
from modlib.config.diff import recorded
from modlib.launching.command import calling_words
from modlib.launching.local import clean_environment
from modlib.launching.old_code import PATCH, OldCode, old_code
from modlib.runtime import durable
from modlib.runtime.errors import EXIT_OK, EXIT_PREEMPTED, ConfigError, DataError, ModlibError, RunFolderError
from modlib.runtime.logs import start_logging
from modlib.runtime.run_folder import RunFolder, check_name, versions
from modlib.runtime.signals import STOP_AFTER
from modlib.runtime.units import counted
from modlib.tracking.comparison import Comparison, compare, last_step
from modlib.tracking.jsonl import read_lines

logger = logging.getLogger("modlib")

POLL_S = 0.1
SUFFIX = "-again"
CODE_FIELDS = ("code", "git_commit", "git_dirty", "git_patch_cut_from_bytes", "git_untracked")


def command(
    run: RunArgument,
    runs_dir: RunsDir = RUNS,
    steps: Annotated[
        int | None, typer.Option("--steps", min=1, help="Stop after this step. Default: all that the run has done.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Of the new run. Default: the run's name with -again.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The comparison as JSON on stdout.")] = False,
) -> None:
    """Run a run again from its folder alone and compare all metrics; exit code 1 at the first difference.

    The new run goes into the same folder as --runs_dir names.
    """
    with reported():
        start_logging()
        original = find_run(run, runs_dir)
        until = _last_compared(original, steps)
        check_data(original)
        _tell_environment(original)
        again = _new_run(original, runs_dir, name)
        with old_code(original) as code:
            logger.info("running %s again as %s, with %s", original.name, again.path, code.what)
            _tell_imports(original, code)
            _run(original, again, code, until)
            what = code.what
        keep_code(original, again)
        again.update(reproduces=str(original.path.absolute()), reproduced_with=what)
        _compare_data(original, again)
        found = compare(original.metrics_path, again.metrics_path, until)
    if as_json:
        print(json.dumps({"run": original.name, "again": str(again.path), "code": what, **asdict(found)}, indent=1))
    else:
        print(told(found))
    raise typer.Exit(1 if found.first_difference else EXIT_OK)


def told(found: Comparison) -> str:
    """The comparison in a sentence."""
    if found.first_difference is None:
        return f"{counted(found.steps, 'logged step')} of {counted(found.metrics, 'metric')} are equal, bit for bit"
    return f"the first difference is at {found.first_difference}"


def _last_compared(run: RunFolder, steps: int | None) -> int:
    done = last_step(run.metrics_path)
    if not run.config_path.is_file():
        raise RunFolderError(f"run ({run.path}) must have a config.gin to be reproduced")
    if done == 0:
        raise RunFolderError(f"run ({run.path}) must have metrics to compare with; {run.metrics_path} holds none")
    first = min(int(line["step"]) for line in read_lines(run.metrics_path))
    if steps is not None and steps < first:
        raise ConfigError(f"--steps ({steps}) must be at least {first}, the first step that {run.name} has logged")
    return done if steps is None else min(steps, done)


def check_data(run: RunFolder) -> None:
    """Read every data file of a run and see that it is what the run read.

    Raises:
        DataError: Naming the file that is gone or changed.
    """
    data = run.read().get("data")
    if data is None:
        logger.warning("run %s recorded no data fingerprints: its data is taken as it lies there", run.name)
    for one in data or ():
        for file in one["files"]:
            _check_file(Path(file["path"]), file["sha256"], one)


def _check_file(path: Path, sha256: str, one: Mapping[str, Any]) -> None:
    if not path.exists() and one["name"].startswith("stdlib:"):
        return  # made again when the run begins, and compared then
    if not path.exists():
        raise DataError(f"data file ({path}), data of {one['use']}, must be there, but is gone; put it back")
    from modlib.data.packed.file import PackedFile

    packed = PackedFile(path)
    packed.verify_once()
    if packed.sha256 != sha256:
        raise DataError(
            f"contents of {path}, data of {one['use']} ({packed.sha256[:12]}), must be what the run read "
            f"({sha256[:12]}); put that file back"
        )


def _compare_data(original: RunFolder, again: RunFolder) -> None:
    """See that both runs read the same, as their fingerprints tell.

    Raises:
        DataError: They did not.
    """
    before, after = ({one["use"]: one for one in run.read().get("data", [])} for run in (original, again))
    for use, one in before.items():
        now = after.get(use, one)
        if now["fingerprint"] != one["fingerprint"]:
            raise DataError(
                f"data of {use} ({now['name']}, {now['fingerprint']}) must be what the run read "
                f"({one['fingerprint']}); put that data back"
            )


def keep_code(original: RunFolder, again: RunFolder) -> None:
    """Write down in the new run which code it was: that of the original, which it took from a folder that is gone."""
    state = original.read()
    again.update(**{name: state[name] for name in CODE_FIELDS if name in state})
    if (original.path / PATCH).is_file():
        durable.atomic_write_bytes(again.path / PATCH, (original.path / PATCH).read_bytes())


def _tell_environment(run: RunFolder) -> None:
    """Say what of this machine is not as it was; numbers may differ for it."""
    state = run.read()
    now = versions()
    for package, version in state.get("versions", {}).items():
        if package != "modlib" and now.get(package) != version:
            logger.warning("version of %s: %s here, %s in the run", package, now.get(package, "none"), version)


def _tell_imports(run: RunFolder, code: OldCode) -> None:
    """Say which modules of the user are not part of the run's code, and are taken as they lie there now."""
    for module in (recorded(run.path) or {}).get("imports", ()):
        place = Path(*module.split("."))
        inside = (root / place for root in code.python_paths)
        if not any(path.is_dir() or path.with_suffix(".py").is_file() for path in inside):
            logger.warning("module %s is not in the code that the run recorded; it is taken as it is now", module)


def _new_run(original: RunFolder, runs_dir: Path, name: str | None) -> RunFolder:
    """A run folder that is not there yet."""
    if name is not None:
        chosen = RunFolder(runs_dir / check_name(name))
        if chosen.path.exists():
            raise RunFolderError(f"name ({name}) must be of a new run, but {chosen.path} exists; choose another --name")
        return chosen
    number = 1
    while True:
        ending = SUFFIX if number == 1 else f"{SUFFIX}-{number}"
        candidate = RunFolder(runs_dir / f"{original.name[: 64 - len(ending)]}{ending}")
        if not candidate.path.exists():
            return candidate
        number += 1


def _run(original: RunFolder, again: RunFolder, code: OldCode, until: int) -> None:
    """Start the old code and wait for its end, after the last step to compare.

    Raises:
        ModlibError: It failed.
    """
    state = original.read()
    where = Path(state.get("working_directory", "."))
    waits, ends_well = until < _num_steps(original), [EXIT_OK, EXIT_PREEMPTED]
    process = subprocess.Popen(
        _words(original, again, code),
        env=_environment(code) | ({STOP_AFTER: str(until)} if waits else {}),
        cwd=where if where.is_dir() else None,
        stdin=subprocess.DEVNULL,
        stdout=2,  # what it prints is for people; stdout is for the comparison
    )
    try:
        while process.poll() is None:
            if waits and last_step(again.metrics_path) > until:
                process.send_signal(signal.SIGTERM)  # code from before STOP_AFTER: it ends a step or two too late
                waits = False
                ends_well.append(-signal.SIGTERM)  # which kills it where training, which takes it, is over already
            time.sleep(POLL_S)
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait()
    if process.returncode not in ends_well:
        error = ModlibError(
            f"the run {again.path} must end well, but ended with exit code {process.returncode}; see above"
        )
        error.exit_code = process.returncode if process.returncode > 0 else 1
        raise error


def _num_steps(run: RunFolder) -> int:
    parameters = (recorded(run.path) or {}).get("parameters", {})
    return int(parameters.get("train.num_steps", {"value": "0"})["value"])


def _words(original: RunFolder, again: RunFolder, code: OldCode) -> list[str]:
    """The call of the old code, on as many ranks and threads as then."""
    words = [*calling_words(code.source), "--gin_file", str(original.config_path.absolute()), "--name", again.name]
    words += ["--runs_dir", str(again.path.parent.absolute()), "--executor", "local"]
    state = original.read()
    for field, parameter in (("world_size", "num_processes"), ("num_threads", "threads_per_process")):
        if state.get(field):
            words += ["--gin_param", f"Local.{parameter}={state[field]}"]
    return words


def _environment(code: OldCode) -> dict[str, str]:
    clean = clean_environment()
    paths = [*map(str, code.python_paths), *filter(None, [clean.get("PYTHONPATH")])]
    return clean | {"PYTHONPATH": os.pathsep.join(paths), "PYTHONDONTWRITEBYTECODE": "1", "MODLIB_REPRODUCING": "1"}
