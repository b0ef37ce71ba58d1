"""`modlib ls`: all runs, the one that something last happened in first."""

from __future__ import annotations

import fnmatch
import json
import sys
import time
from typing import Annotated

import typer

from modlib.cli.options import RUNS, RunsDir
from modlib.cli.report import reported
from modlib.cli.table import print_remarked
from modlib.cli.watch.runs import COLOURS, run_folders, silent_scheduler, states_of
from modlib.launching.run_state import RunState
from modlib.runtime.units import format_seconds

COLUMNS = ("run", "state", "step", "ETA", "loss", "val loss", "host", "age", "why")


def command(
    pattern: Annotated[
        str, typer.Argument(help="Part of a run's name, or a pattern with * and ?. Default: all runs.")
    ] = "",
    runs_dir: RunsDir = RUNS,
    as_json: Annotated[bool, typer.Option("--json", help="JSON on stdout: a list, one object per run.")] = False,
) -> None:
    """List the runs with state, step, ETA, loss and host; the age is that of the last change in the folder."""
    with reported():
        known = run_folders(runs_dir)
        names = [name for name in known if _matches(name, pattern)]
        states = dict(zip(names, states_of([known[name] for name in names]), strict=True))
    rows = sorted(states.items(), key=lambda item: item[1].last_activity, reverse=True)
    if as_json:
        print(json.dumps([{**one.to_json(), "name": name} for name, one in rows], indent=1, ensure_ascii=False))
        return
    if not rows:
        matching = f" that match {pattern!r}, of {len(known)}" if known and pattern else ""
        print(f"no runs in {runs_dir.absolute()}{matching}", file=sys.stderr)
        raise typer.Exit(1 if pattern else 0)
    now = time.time()
    print_remarked(COLUMNS, [_row(name, one, now) for name, one in rows], colours=COLOURS)
    if note := silent_scheduler(states.values()):
        print(note, file=sys.stderr)


def _matches(name: str, pattern: str) -> bool:
    if any(char in pattern for char in "*?["):
        return fnmatch.fnmatch(name.lower(), pattern.lower())
    return pattern.lower() in name.lower()


def _row(name: str, one: RunState, now: float) -> list[str]:
    step = "" if one.step is None and one.num_steps is None else f"{one.step or 0}/{one.num_steps or '?'}"
    eta = "" if one.eta_s is None else format_seconds(one.eta_s)
    losses = ["" if loss is None else f"{loss:.4f}" for loss in (one.loss, one.val_loss)]
    why = "" if one.state == "stopped" and not one.lost_steps else one.why  # how to continue is the same for all
    return [name, one.state, step, eta, *losses, one.host, format_seconds(max(0.0, now - one.last_activity)), why]
