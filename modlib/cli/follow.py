"""`modlib follow`: a run's log and progress as they come, until it ends."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import typer

from modlib.cli.logs import tail_offset
from modlib.cli.report import reported
from modlib.cli.runs import RunArgument, RunsDir, find_run, silent_scheduler
from modlib.cli.status import described
from modlib.launching.run_state import RunState, job_ids_of, run_state
from modlib.launching.scheduler import JobState, job_states
from modlib.runtime.errors import EXIT_INTERRUPTED, EXIT_OK, EXIT_PREEMPTED
from modlib.runtime.run_folder import RunFolder
from modlib.runtime.units import format_seconds
from modlib.tracking.lines import SHORT_NAMES, format_value, split_evaluations

POLL_S = 0.3
LOOK_S = 1.0
ASK_SLURM_S = 15.0
FIRST_LINES = 10


def command(run: RunArgument, runs_dir: RunsDir = Path("runs")) -> None:
    """Print new lines of rank 0's log, and a line per logged step, through all attempts until the run ends or Ctrl-C.

    Exit code 0: the run is finished; 75: it stopped and can go on; 1: it failed, died or was cancelled.
    """
    with reported():
        watch = Watch(find_run(run, runs_dir))
        try:
            while not watch.look():
                time.sleep(POLL_S)
        except KeyboardInterrupt:
            print("no longer followed; the run is as it was", file=sys.stderr, flush=True)
            raise typer.Exit(EXIT_INTERRUPTED) from None
        print(described(watch.state), flush=True)
        if note := silent_scheduler([watch.state]):
            print(note, file=sys.stderr)
    raise typer.Exit({"finished": EXIT_OK, "stopped": EXIT_PREEMPTED}.get(watch.state.state, 1))


class Watch:
    """What was shown of a run so far.

    Args:
        run: The run.
    """

    def __init__(self, run: RunFolder) -> None:
        self.run = run
        self.attempt = run.current_attempt()
        self._jobs: Mapping[str, JobState] = {}
        self._looked = 0.0
        self._ask_next = 0.0
        self._shown: tuple[Any, ...] = ()
        self.state = self._judge()
        self._log = NewLines(self.attempt.log_path(0), FIRST_LINES)
        self._metrics = NewLines(run.metrics_path, 1)
        self._since_attempt = 0
        self._show_state()

    def look(self) -> bool:
        """Print what is new; whether the run is over, and everything was printed."""
        over = False
        if time.monotonic() - self._looked > LOOK_S:
            self._looked = time.monotonic()
            self.state = self._judge()
            over = self.state.is_over
        self._drain()
        newest = self.run.current_attempt()
        if newest.number != self.attempt.number:
            self.attempt = newest
            print(f"attempt {newest.number}", flush=True)
            self._log = NewLines(newest.log_path(0))
            self._metrics, self._since_attempt = NewLines(self.run.metrics_path), newest.number
            return False
        if not over:
            self._show_state()
        return over

    def _judge(self) -> RunState:
        self._ask()
        state = run_state(self.run, self._jobs)
        if state.is_over and state.state != "finished" and state.job_ids:
            self._ask(at_once=True)  # it may be queued again meanwhile
            state = run_state(self.run, self._jobs)
        return state

    def _ask(self, *, at_once: bool = False) -> None:
        job_ids = job_ids_of(self.run.read())
        began = time.monotonic()
        if job_ids and (at_once or began >= self._ask_next):
            self._jobs = job_states(job_ids, job_ids[-1:])
            took = time.monotonic() - began
            self._ask_next = began + took + max(ASK_SLURM_S, 10 * took)  # a slow SLURM is asked less often

    def _drain(self) -> None:
        for line in self._log.read():
            print(line.decode(errors="replace"))
        for line in self._metrics.read():
            try:
                record = json.loads(line)
            except ValueError:
                continue
            # a line of the next attempt waits until that attempt is announced, and the file is read again
            if isinstance(record, dict) and self._since_attempt <= _attempt_of(record) <= self.attempt.number:
                print("\n".join(progress(record, self.state)))
        sys.stdout.flush()

    def _show_state(self) -> None:
        one = self.state
        shown = (one.state, one.why if one.state != "running" else "", one.no_news)
        if shown != self._shown:
            self._shown = shown
            print(f"{one.name}: {one.state}{f', {one.why}' if one.why else ''}", flush=True)


class NewLines:
    """The complete lines that come into a file; all of it again when it is cut or replaced.

    Args:
        path: The file; may not exist yet.
        last: How many of the lines that are there already count as new; None: all.
    """

    def __init__(self, path: Path, last: int | None = None) -> None:
        self.path = path
        self._offset = 0
        self._before = b""  # what stood before the offset: something else there means another file
        if last is not None:
            try:
                with open(path, "rb") as file:
                    self._offset = tail_offset(file, last)
                    self._remember(file)
            except OSError:
                pass

    def read(self) -> list[bytes]:
        """The lines since the last call."""
        try:
            with open(self.path, "rb") as file:
                file.seek(self._offset - len(self._before))
                if file.read(len(self._before)) != self._before:
                    self._offset = 0
                    file.seek(0)
                new = file.read()
                whole = new[: new.rfind(b"\n") + 1]
                self._offset += len(whole)
                self._remember(file)
        except OSError:
            return []
        return whole.splitlines()

    def _remember(self, file: Any) -> None:
        start = max(0, self._offset - 64)
        file.seek(start)
        self._before = file.read(self._offset - start)


def progress(record: Mapping[str, Any], state: RunState) -> list[str]:
    """A line of metrics.jsonl for people: one line for training, one per evaluator."""
    values = {name: float(value) for name, value in record.items() if "/" in name and _is_number(value)}
    training, evaluations = split_evaluations(values)
    step = f"step={record.get('step')}" + (f"/{state.num_steps}" if state.num_steps else "")
    lines = []
    if training:
        eta = f" eta={format_seconds(state.eta_s).replace(' ', '')}" if state.eta_s is not None else ""
        pairs = [f"{SHORT_NAMES.get(name, name)}={format_value(name, value)}" for name, value in training.items()]
        lines.append(f"train {step} {' '.join(pairs)}{eta}")
    for name, metrics in evaluations.items():
        pairs = [f"{kind}={format_value(kind, value)}" for kind, value in metrics.items()]
        lines.append(f"eval {step} name={name} {' '.join(pairs)}")
    return lines


def _attempt_of(record: Mapping[str, Any]) -> int:
    number = record.get("attempt")
    return number if isinstance(number, int) else 0


def _is_number(value: Any) -> bool:
    if isinstance(value, str):
        return value in ("NaN", "Infinity", "-Infinity")
    return isinstance(value, (int, float)) and not isinstance(value, bool)
