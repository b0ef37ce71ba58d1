"""`modlib logs`: what a rank wrote into its log."""

from __future__ import annotations

import os
import sys
from collections import deque
from pathlib import Path
from typing import Annotated, BinaryIO

import typer

from modlib.cli.options import RUNS, RunArgument, RunsDir
from modlib.cli.report import reported
from modlib.cli.watch.metrics_text import progress
from modlib.cli.watch.runs import find_run
from modlib.launching.run_state import run_state
from modlib.runtime.errors import ConfigError, RunFolderError
from modlib.runtime.run_folder import Attempt, RunFolder
from modlib.tracking.jsonl import read_lines

BLOCK_BYTES = 64 << 10


def command(
    run: RunArgument,
    rank: Annotated[
        int | None, typer.Option("--rank", help="Whose log. Default: what a cluster's job printed, else rank 0's.")
    ] = None,
    attempt: Annotated[
        int | None, typer.Option("--attempt", help="Of which start of the run, from 1. Default: the last.")
    ] = None,
    lines: Annotated[int, typer.Option("--lines", help="Last lines to print; 0: all.")] = 100,
    runs_dir: RunsDir = RUNS,
) -> None:
    """Print the log of a run or of one of its ranks; its path goes to stderr."""
    with reported():
        if lines < 0:
            raise ConfigError(f"--lines ({lines}) must be at least 0; 0 prints all")
        found = find_run(run, runs_dir)
        path = log_file(found, rank, attempt)
        print(path, file=sys.stderr, flush=True)
        with open(path, "rb") as file:
            file.seek(tail_offset(file, lines) if lines else 0)
            text = file.read().decode(errors="replace")
        sys.stdout.write(text)
        if not text:
            print("the log is empty: this rank had nothing to say but its metrics", file=sys.stderr)
            _show_metrics(found, lines)


def _show_metrics(run: RunFolder, lines: int) -> None:
    """What a log would be opened for: the loss and the other numbers, which training writes into metrics.jsonl."""
    try:
        records = deque(read_lines(run.metrics_path), lines or None)
    except OSError:
        records = deque()
    if not records:
        print(f"and there are no metrics yet in {run.metrics_path}", file=sys.stderr)
        return
    print(f"the last of {run.metrics_path}; `modlib follow {run.name}` shows them as they come:", file=sys.stderr)
    state = run_state(run)
    for record in records:
        print("\n".join(progress(record, state)))


def log_file(run: RunFolder, rank: int | None, attempt: int | None) -> Path:
    """The log of a rank; without one, the log of the job or of rank 0.

    Raises:
        RunFolderError: There is none; the text names those that there are.
    """
    last = run.current_attempt().number
    if not last:
        raise RunFolderError(f"run ({run.path}) must have been started to have logs; see `modlib status {run.name}`")
    number = last if attempt is None else attempt
    if not 1 <= number <= last:
        raise RunFolderError(f"--attempt ({number}) must be one of {run.name}'s, 1 to {last}")
    chosen = Attempt(number, run.attempts_path / f"{number:04d}")
    if rank is None and chosen.job_log_path.is_file():
        return chosen.job_log_path
    rank = rank or 0
    path = chosen.log_path(rank)
    if not path.is_file():
        found = sorted(chosen.logs_path.glob("rank-*.out"), key=lambda each: (len(each.name), each.name))
        ranks = ", ".join(each.stem.removeprefix("rank-") for each in found)
        others = f"those of {ranks} are there" if ranks else "there is none"
        raise RunFolderError(f"--rank ({rank}) must be one with a log in {chosen.logs_path}; {others}")
    return path


def tail_offset(file: BinaryIO, lines: int) -> int:
    """Where the last lines of an open file begin; reads its end alone."""
    end = file.seek(0, os.SEEK_END)
    position, newlines, first = end, 0, True
    while position > 0:
        size = min(BLOCK_BYTES, position)
        position -= size
        file.seek(position)
        block = file.read(size)
        stop = len(block)
        if first and block.endswith(b"\n"):
            stop -= 1  # the end of the last line begins no other
        first = False
        while (found := block.rfind(b"\n", 0, stop)) >= 0:
            newlines += 1
            if newlines == lines:
                return position + found + 1
            stop = found
    return 0
