"""`modlib sweep`: what came out of a sweep, point by point, and which point is best."""

from __future__ import annotations

import csv
import json
import math
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from modlib.cli.options import RUNS, RunsDir, SweepArgument
from modlib.cli.report import reported
from modlib.cli.table import print_table
from modlib.cli.watch.runs import find_sweep
from modlib.runtime.shell import command_line
from modlib.runtime.units import counted

if TYPE_CHECKING:
    from modlib.launching.sweep import Sweep
    from modlib.launching.sweep_results import Goal, Result

BEST = "<- best"


def command(
    sweep: SweepArgument,
    metric: Annotated[
        str | None, typer.Option("--metric", help="Default: the validation loss, else the training loss.")
    ] = None,
    goal: Annotated[
        Literal["min", "max"] | None, typer.Option("--goal", help="Default: max for an accuracy or a speed, else min.")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="OUT.png", help="Draw it; needs pip install 'modlib[plots]'.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON on stdout.")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="CSV with a header on stdout.")] = False,
    runs_dir: RunsDir = RUNS,
) -> None:
    """Show the results of a sweep: a table of its points, the best one, and how to run what is not finished."""
    with reported():
        if as_json and as_csv:
            raise typer.BadParameter("--json and --csv exclude each other")
        from modlib.launching.sweep import read_sweep
        from modlib.launching.sweep_results import best_result, choose_metric, results, usual_goal

        read = read_sweep(find_sweep(sweep, runs_dir))
        metric = choose_metric(read, metric)
        goal = goal or usual_goal(metric)
        found = results(read, metric, goal)
        best = best_result(found, goal)
        if as_json:
            print(json.dumps(_as_json(read, metric, goal, found, best), indent=1))
        elif as_csv:
            _print_csv(read, found)
        else:
            _print_table(read, metric, found, best)
        if not as_json:
            for line in _summary(read, metric, goal, found, best):
                print(line, file=sys.stderr)
        if plot is not None:
            from modlib.cli.sweeps.drawing import draw

            draw(plot, read, found, metric, goal)
            print(f"drawn: {plot}", file=sys.stderr)


def _print_table(sweep: Sweep, metric: str, found: list[Result], best: Result | None) -> None:
    from modlib.launching.sweep_results import why

    keys = list(sweep.points[0].values)
    rows = []
    for result in found:
        state = result.state
        if state == "failed":
            state += f": {why(result.exit_code)}"
        at = "" if result.best_step is None else f"{_number(result.best)} at {result.best_step}"
        rows.append(
            [
                *(result.point.values[key] for key in keys),
                state,
                "" if result.step is None else str(result.step),
                _number(result.last),
                at,
                BEST if result is best else "",
            ]
        )
    print_table([*keys, "state", "step", "last", "best", ""], rows, title=f"{sweep.name}: {metric}", header=True)


def _print_csv(sweep: Sweep, found: list[Result]) -> None:
    keys = list(sweep.points[0].values)
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(["point", *keys, "state", "exit_code", "step", "last", "best", "best_step"])
    for result in found:
        cells = (result.state, result.exit_code, result.step, result.last, result.best, result.best_step)
        writer.writerow([result.point.name, *(result.point.values[key] for key in keys), *cells])


def _as_json(sweep: Sweep, metric: str, goal: Goal, found: list[Result], best: Result | None) -> dict[str, Any]:
    from modlib.launching.sweep import sweep_command
    from modlib.launching.sweep_results import value_of

    return {
        "sweep": sweep.name,
        "axes": sweep.axes,
        "metric": metric,
        "goal": goal,
        "counts": dict(Counter(result.state for result in found)),
        "best": best.point.name if best else None,
        "command": sweep_command(sweep),
        "points": [
            {
                "name": result.point.name,
                "values": {key: value_of(text) for key, text in result.point.values.items()},
                "state": result.state,
                "exit_code": result.exit_code,
                "step": result.step,
                "last": result.last if result.last is None or math.isfinite(result.last) else str(result.last),
                "best": result.best,
                "best_step": result.best_step,
                "run": str(result.point.run.path),
            }
            for result in found
        ],
    }


def _summary(sweep: Sweep, metric: str, goal: Goal, found: list[Result], best: Result | None) -> list[str]:
    from modlib.launching.sweep import point_command, sweep_command
    from modlib.launching.sweep_results import is_seed, over_seeds

    counts = Counter(result.state for result in found)
    told = ", ".join(f"{count} {state}" for state, count in counts.most_common())
    lines = [f"{counted(len(found), 'point')}: {told}"]
    if best is not None:
        word = "lowest" if goal == "min" else "highest"
        values = " ".join(best.point.params)
        lines.append(f"best: {values}: {word} {metric} {_number(best.best)} at step {best.best_step}")
        groups = over_seeds(found)
        if any(map(is_seed, best.point.values)) and 1 < len(groups) < len(found):
            group = (min if goal == "min" else max)(groups, key=lambda one: one.mean)
            values = " ".join(f"{key}={text}" for key, text in group.values)
            spread = f"{_number(min(group.bests))} to {_number(max(group.bests))}"
            lines.append(f"best mean over seeds: {values}: {_number(group.mean)} ({spread}, {len(group.bests)} runs)")
        lines.append(f"# the best point alone\n{command_line(['launch.py', *point_command(best.point)])}")
    else:
        lines.append(f"no point has {metric} yet")
    if counts["finished"] < len(found):
        lines.append(f"# run what is not finished\n{command_line(sweep_command(sweep))}")
    return lines


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.4f}" if 1e-2 <= abs(value) < 1e4 else f"{value:.4g}"
