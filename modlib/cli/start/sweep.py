"""A sweep on this machine: check every point, then train one after another, each in a process of its own."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from modlib.cli.table import print_table
from modlib.config.hashing import digits_of
from modlib.launching.command import calling_words, own_call
from modlib.launching.continuing import Resume, require_same
from modlib.launching.prepare import write_config
from modlib.launching.sweep import Point, Sweep, pending_points, plan_sweep, point_command, without_checkpoints
from modlib.launching.sweep_points import grouped, some_of
from modlib.launching.sweep_results import state_of, why
from modlib.runtime import errors
from modlib.runtime.errors import (
    EXIT_INTERRUPTED,
    EXIT_OK,
    EXIT_PREEMPTED,
    EXIT_STEPS_LOST,
    STOPPED,
    ConfigError,
    ModlibError,
    RunFolderError,
)
from modlib.runtime.run_folder import RunFolder
from modlib.runtime.shell import command_line, quoted
from modlib.runtime.signals import handled_by, ignored_in_children
from modlib.runtime.units import counted, format_seconds
from modlib.tracking.lines import format_value

if TYPE_CHECKING:
    from modlib.config import Config
    from modlib.launching.slurm import Executor, Slurm
    from modlib.tracking.run_plan import Plan

SWEEP_PIPE = "MODLIB_SWEEP_PIPE"  # closes when the sweep's process is gone
SLOW_CHECK = 20  # points, from which on the user is told that checking takes a while


def run_sweep(
    flags: Sequence[str],
    gin_files: Sequence[str],
    gin_params: Sequence[str],
    *,
    runs_dir: Path,
    name: str | None,
    num_samples: int | None,
    seed: int,
    resume: Resume,
    executor: Executor | None,
    dry_run: bool,
    as_json: bool,
) -> int:
    """Check all points, then train those that are not finished; returns the exit code.

    Raises:
        ConfigError: Something is wrong at any point; nothing was started.
    """

    def ranks_of(config: Config) -> int:
        from modlib.cli.start.planning import place_of

        return place_of(config, executor).world_size

    sweep = plan_sweep(
        flags,
        gin_files,
        gin_params,
        runs_dir=runs_dir,
        name=name,
        num_samples=num_samples,
        seed=seed,
        ranks_of=ranks_of,
    )
    plans = check(sweep, sweep.points if dry_run else pending_points(sweep), executor)
    slurm = _slurm(sweep, executor)
    for note in sweep.notes:
        _say(note)
    if gone := without_checkpoints(sweep):
        _say(f"finished, and not trained again, although their checkpoints are gone: {some_of(gone)}")
    if dry_run:
        _show(sweep, plans, as_json=as_json)
        return EXIT_OK
    sweep.make_folder()
    with RunFolder(sweep.folder).lock():
        sweep.write()
        if slurm is not None:
            from modlib.cli.start.slurm import submit_sweep

            return submit_sweep(sweep, plans, slurm, resume)
        return _train(sweep, resume)


def check(sweep: Sweep, points: Sequence[Point], executor: Executor | None = None) -> dict[str, Plan]:
    """The plans of points by name: what fits together only when it is built is found before anything starts.

    Raises:
        ModlibError: The problems of all points.
    """
    if len(points) >= SLOW_CHECK:
        _say(f"checking {len(points)} points")
    plans: dict[str, Plan] = {}
    from modlib.cli.start.planning import check_plan, place_of

    wrong: list[tuple[str, list[str]]] = []
    kinds: set[type[ModlibError]] = set()
    for point in points:
        try:
            config = sweep.configs[point.name]
            plans[point.name] = check_plan(config, place_of(config, executor))
        except ModlibError as error:
            wrong.append((point.name, error.problems if isinstance(error, ConfigError) else [str(error)]))
            # gin raises a class of its own, derived from that of the error
            kinds.add(next(kind for kind in type(error).__mro__ if vars(errors).get(kind.__name__) is kind))
    if wrong:
        problems = grouped(wrong, len(points))
        kind = kinds.pop() if len(kinds) == 1 else ConfigError
        raise ConfigError(problems) if issubclass(kind, ConfigError) else kind("\n".join(problems))
    return plans


def _slurm(sweep: Sweep, executor: Executor | None) -> Slurm | None:
    """What to ask SLURM for, the same for every point; None where the sweep is trained here."""
    from modlib.cli.start.planning import place_of
    from modlib.launching.slurm import Slurm

    settings = {
        tuple((name, repr(value)) for name, value in config.resolved.items() if name.startswith(("Slurm.", "launch.")))
        for config in sweep.configs.values()
    }
    if len(settings) > 1:
        differing = sorted({name for (name, _), *_ in [set(a) ^ set(b) for a in settings for b in settings if a != b]})
        raise ConfigError(
            f"{', '.join(differing)} must be the same at every point, since one array of jobs asks for all of them; "
            "sweep over it in several submissions"
        )
    place = place_of(next(iter(sweep.configs.values())), executor)
    return place if isinstance(place, Slurm) else None


def _show(sweep: Sweep, plans: dict[str, Plan], *, as_json: bool) -> None:
    rows: list[dict[str, Any]] = [
        {
            "name": point.name,
            "params": point.params,
            "config_hash": point.config_hash,
            "num_steps": plans[point.name].num_steps,
            "num_tokens": plans[point.name].num_steps * plans[point.name].tokens_per_step,
            "state": state_of(point.run.read()),
        }
        for point in sweep.points
    ]
    if as_json:
        print(
            json.dumps({"sweep": sweep.name, "folder": str(sweep.folder), "axes": sweep.axes, "points": rows}, indent=1)
        )
        return
    keys = list(sweep.points[0].values)
    table = [
        [row["name"], *point.values.values(), digits_of(row["config_hash"])[:8], f"{row['num_steps']:,}", row["state"]]
        for row, point in zip(rows, sweep.points)
    ]
    print_table(
        ["point", *keys, "config", "steps", "state"],
        table,
        title=f"{sweep.name}: {counted(len(rows), 'point')}, all checked",
    )


def _train(sweep: Sweep, resume: Resume) -> int:
    """Train what is not finished, sum up, and return the exit code."""
    codes: dict[str, int] = {}
    pending = pending_points(sweep)
    resumed = [] if resume == "auto" else ["--resume", resume]
    if done := len(sweep.points) - len(pending):
        _say(f"sweep {sweep.name}: {done} of {counted(len(sweep.points), 'point')} are finished already")
    with Processes() as processes:
        for number, point in enumerate(pending, done + 1):
            if processes.signals:
                break
            _say(f"[{number}/{len(sweep.points)}] {point.name}")
            started = time.monotonic()
            try:
                _write_config(sweep, point)
                code = processes.run([*calling_words(), *point_command(point), *resumed])
            except ModlibError as error:  # this point alone cannot be continued
                _say(str(error))
                code = error.exit_code
            codes[point.name] = code
            _note_failure(point, code, stopped=bool(processes.signals))
            _say(f"[{number}/{len(sweep.points)}] {point.name} {_outcome(point, code, time.monotonic() - started)}")
    return _sum_up(sweep, codes, processes.signals)


def _write_config(sweep: Sweep, point: Point) -> None:
    """What was checked is what runs, whatever happens to the gin files meanwhile."""
    config = sweep.configs[point.name]
    same_as = require_same(config, point.run).same_as
    try:
        write_config(config, point.run, same_as)
    except OSError as error:
        raise RunFolderError(
            f"run folder ({point.run.path}) must be a folder that can be written: {error.strerror or error}; "
            "the same command continues"
        ) from error


def stop_with_sweep() -> None:
    """In a point's process: save and stop when the sweep's process is gone, however it went; call once at the start."""
    descriptor = os.environ.pop(SWEEP_PIPE, None)
    if descriptor is None:
        return

    def watch(number: int) -> None:
        os.read(number, 1)  # returns when the other end is closed
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, args=(int(descriptor),), name="modlib-sweep", daemon=True).start()


class Processes:
    """Runs one process after another; a signal to this one is passed on to the one that runs, once each."""

    def __init__(self) -> None:
        self.signals: list[int] = []
        self._passed_on = 0
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Processes:
        self._alive_reader, self._alive_writer = os.pipe()  # closes with this process: the points' processes watch it
        self._stack = contextlib.ExitStack()
        self._stack.enter_context(handled_by(self._note))
        # where the parent of this process ignores SIGCHLD, how a child ended would be lost
        before = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        self._stack.callback(signal.signal, signal.SIGCHLD, signal.SIG_DFL if before is None else before)
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        os.close(self._alive_reader)
        os.close(self._alive_writer)
        self._stack.close()

    def run(self, command: Sequence[str]) -> int:
        """Run to the end; the exit code, or minus the number of the signal that ended it."""
        # in a session of its own: Ctrl-C reaches this process alone, which tells the child once
        with ignored_in_children():  # a signal that comes before it has its handlers waits for them
            self._process = subprocess.Popen(
                command,
                env=os.environ | {SWEEP_PIPE: str(self._alive_reader)},
                stdin=subprocess.DEVNULL,
                pass_fds=(self._alive_reader,),
                start_new_session=True,
            )
        self._pass_on()
        return self._process.wait()

    def _note(self, number: int, _: FrameType | None) -> None:
        self.signals.append(number)
        self._pass_on()

    def _pass_on(self) -> None:
        while self._process is not None and self._passed_on < len(self.signals):
            number = self.signals[self._passed_on]
            self._passed_on += 1
            self._process.send_signal(number)


def _note_failure(point: Point, code: int, *, stopped: bool) -> None:
    """Let run.json tell a failure that the run could not write down: before its first attempt, or by a signal."""
    if code == EXIT_OK or code in STOPPED or stopped or not point.run.path.is_dir():
        return
    if code < 0 or point.run.read().get("status") in (None, "created"):
        point.run.update(status="failed", exit_code=code)


def _outcome(point: Point, code: int, seconds: float) -> str:
    if code in STOPPED:
        return f"stopped at step {point.run.read().get('step', 0)}"
    if code != EXIT_OK:
        return f"failed: {why(code)}"
    from modlib.tracking.results import best_evaluations

    best = [f"{name} {format_value('loss', loss)}" for name, (loss, _) in best_evaluations(point.run.path).items()]
    return f"finished in {format_seconds(seconds)}" + (f": best {', '.join(best)}" if best else "")


def _sum_up(sweep: Sweep, codes: dict[str, int], signals: Sequence[int]) -> int:
    left = pending_points(sweep)
    failed = [point for point in left if codes.get(point.name, EXIT_OK) not in (EXIT_OK, *STOPPED)]
    if signals:
        failed = [point for point in failed if point.name != list(codes)[-1]]  # that one was told to end
    _say(
        f"sweep {sweep.name}: {len(sweep.points) - len(left)} of {counted(len(sweep.points), 'point')} finished"
        + (f", {len(failed)} failed" if failed else "")
        + (f", {len(left) - len(failed)} to do" if len(left) > len(failed) else "")
    )
    for point in failed:
        _say(f"  {point.name} failed: {why(codes[point.name])} (logs: {point.run.current_attempt().logs_path})")
    if left:
        _say(f"# run what is not finished: the same command\n{command_line(own_call())}")
    _say(f"# results\nmodlib sweep {quoted(os.path.relpath(sweep.folder))}")
    if not left:
        return EXIT_OK
    if signals:
        if EXIT_INTERRUPTED in codes.values() and len(signals) > 1:
            return EXIT_INTERRUPTED
        return EXIT_STEPS_LOST if EXIT_STEPS_LOST in codes.values() else EXIT_PREEMPTED
    return 1


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
