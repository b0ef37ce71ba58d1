"""`modlib follow`: a run's log and progress as they come, until it ends."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import typer

from modlib.cli.options import RUNS, RunArgument, RunsDir
from modlib.cli.report import reported
from modlib.cli.watch.logs import tail_offset
from modlib.cli.watch.metrics_text import progress
from modlib.cli.watch.runs import find_run, silent_scheduler
from modlib.cli.watch.status import described
from modlib.launching.run_state import RunState, job_ids_of, run_state
from modlib.launching.scheduler import JobState, job_states
from modlib.runtime.errors import EXIT_INTERRUPTED, EXIT_OK, EXIT_PREEMPTED, EXIT_STEPS_LOST
from modlib.runtime.run_folder import RunFolder
from modlib.tracking.jsonl import parse_line

POLL_S = 0.3
LOOK_S = 1.0
ASK_SLURM_S = 15.0
FIRST_LINES = 10


def command(run: RunArgument, runs_dir: RunsDir = RUNS) -> None:
    """Print new lines of rank 0's log, and a line per logged step, through all attempts until the run ends or Ctrl-C.

    Exit code 0: the run is finished; 75: it stopped and can go on; 7: the same, with steps lost; 1: it failed, died
    or was cancelled.
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
    stopped = EXIT_STEPS_LOST if watch.state.lost_steps else EXIT_PREEMPTED
    raise typer.Exit({"finished": EXIT_OK, "stopped": stopped}.get(watch.state.state, 1))


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
            record = parse_line(line)
            # a line of the next attempt waits until that attempt is announced, and the file is read again
            if record is not None and self._since_attempt <= record.get("attempt", 0) <= self.attempt.number:
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
