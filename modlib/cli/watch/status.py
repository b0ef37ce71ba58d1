"""`modlib status`: what runs are doing, in full."""

from __future__ import annotations

import json
import sys
from typing import Annotated

import typer

from modlib.cli.completion import complete_run
from modlib.cli.options import RUNS, RunsDir
from modlib.cli.report import reported
from modlib.cli.watch.runs import COLOURS, find_run, run_folders, silent_scheduler, states_of
from modlib.launching.run_state import RunState
from modlib.runtime.units import format_count, format_percent, format_seconds

ONGOING = ("running", "queued")


def command(
    runs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[RUN]...",
            help="Names, beginnings of names, or paths. Default: those that run or wait, else the newest.",
            autocompletion=complete_run,
        ),
    ] = None,
    runs_dir: RunsDir = RUNS,
    as_json: Annotated[bool, typer.Option("--json", help="JSON on stdout: a list, one object per run.")] = False,
) -> None:
    """Say what runs are doing, from their folders first; SLURM is asked about those that have jobs there."""
    with reported():
        if runs:
            states = states_of([find_run(word, runs_dir) for word in runs])
        else:
            states = states_of(run_folders(runs_dir).values())
            ongoing = [one for one in states if one.state in ONGOING]
            newest = sorted(states, key=lambda one: one.last_activity)[-1:]
            if not ongoing:
                print(f"no run in {runs_dir}/ runs or waits" + ("; the newest:" if newest else ""), file=sys.stderr)
            states = ongoing or newest
    if as_json:
        print(json.dumps([one.to_json() for one in states], indent=1, ensure_ascii=False))
        return
    print("\n\n".join(described(one, colour=sys.stdout.isatty()) for one in states))
    if note := silent_scheduler(states):
        print(note, file=sys.stderr)


def described(one: RunState, *, colour: bool = False) -> str:
    """A run's state in lines for people."""
    lines = [f"{one.name}  {coloured(one.state) if colour else one.state}"]
    facts = {
        "why": one.why,
        "step": step_text(one),
        "loss": _losses(one),
        "where": _where(one),
        "attempt": _attempt(one),
        "checkpoint": f"step {one.checkpoint_step}" if one.checkpoint_step is not None else "",
        "folder": str(one.path),
        "W&B": one.wandb_url,
    }
    return "\n".join(lines + [f"  {name:<11} {text}" for name, text in facts.items() if text])


def coloured(state: str) -> str:
    """A state in its colour."""
    from rich.text import Text

    from modlib.runtime.console import PlainConsole

    console = PlainConsole()
    with console.capture() as capture:
        console.print(Text(state, style=COLOURS.get(state, "")), end="")
    return capture.get()


def step_text(one: RunState) -> str:
    """ "120 of 2000 (6.0%), 3.93M tokens, 3m 12s left"."""
    if one.step is None:
        return f"0 of {one.num_steps}" if one.num_steps is not None else ""
    share = f" of {one.num_steps} ({format_percent(one.step / one.num_steps)})" if one.num_steps else ""
    tokens = f", {format_count(one.tokens)} tokens" if one.tokens is not None else ""
    left = f", {format_seconds(one.eta_s)} left" if one.eta_s is not None else ""
    return f"{one.step}{share}{tokens}{left}"


def _losses(one: RunState) -> str:
    train = f"{one.loss:.4f}" if one.loss is not None else ""
    val = f"validation {one.val_loss:.4f}" if one.val_loss is not None else ""
    return ", ".join(filter(None, [train, val]))


def _where(one: RunState) -> str:
    ranks = f"{one.world_size} rank{'s' if one.world_size != 1 else ''}" if one.world_size else ""
    process = f"process {one.pid}" if one.pid is not None else ""
    job = ""
    if one.job_ids:
        said = f" {one.job.state}" if one.job else ""
        limit = f", {format_seconds(one.job.time_left_s)} to its time limit" if _has_limit(one) else ""  # type: ignore[union-attr, arg-type]
        job = f"job {one.job.job_id if one.job else one.job_ids[-1]}{said}{limit}"
    return ", ".join(filter(None, [one.executor, one.host, process, ranks, job]))


def _has_limit(one: RunState) -> bool:
    return one.job is not None and one.job.state == "RUNNING" and one.job.time_left_s is not None


def _attempt(one: RunState) -> str:
    if not one.attempts:
        return ""
    heartbeat = f"heartbeat {format_seconds(one.heartbeat_age_s)} ago" if one.heartbeat_age_s is not None else ""
    metrics = f"last metrics {format_seconds(one.quiet_s)} ago" if one.quiet_s is not None else ""
    return ", ".join(filter(None, [str(one.attempts), heartbeat, metrics]))
