"""`modlib plot`: curves of one or several runs in one picture."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any

import typer

from modlib.cli.options import RUNS, RunArguments, RunsDir
from modlib.cli.report import reported
from modlib.cli.sweeps.drawing import DOTS_PER_INCH, FORMATS, unit_of
from modlib.cli.watch.runs import find_run
from modlib.config.suggestions import similar
from modlib.runtime.errors import ConfigError
from modlib.runtime.run_folder import RunFolder
from modlib.runtime.units import counted
from modlib.tracking.jsonl import read_lines

DEFAULT_METRICS = ("train/loss", "val/*/loss")
MOST_NAMED = 5
STYLES = ("-", "--", ":", "-.")

Curve = tuple[list[int], list[float]]


def command(
    runs: RunArguments,
    out: Annotated[Path, typer.Option("--out", help="The file to write: .png, .pdf or .svg.")],
    metrics: Annotated[
        list[str], typer.Option("--metric", help="A metric, or a pattern such as 'val/*/loss'; repeatable.")
    ] = list(DEFAULT_METRICS),  # noqa: B006  typer reads the default, nobody changes it
    title: Annotated[str, typer.Option("--title", help="Above the curves.")] = "",
    log_x: Annotated[bool, typer.Option("--log_x", help="Steps on a logarithmic scale.")] = False,
    log_y: Annotated[bool, typer.Option("--log_y", help="Values on a logarithmic scale.")] = False,
    runs_dir: RunsDir = RUNS,
) -> None:
    """Draw metrics of runs over steps: a colour for each run, a kind of line for each metric."""
    with reported():
        if out.suffix.lower() not in FORMATS:
            raise ConfigError(f"--out ({out}) must end in {', '.join(FORMATS)}; name a file of one of these kinds")
        found = [find_run(run, runs_dir) for run in runs]
        curves = {run.name: read_curves(run, metrics) for run in found}
        draw(out, curves, title=title, log_x=log_x, log_y=log_y)
        print(f"{out}: {counted(sum(map(len, curves.values())), 'curve')} of {counted(len(found), 'run')}")


def read_curves(run: RunFolder, wanted: Sequence[str]) -> dict[str, Curve]:
    """Steps and values of the metrics that match one of the names or patterns, in the order of these.

    Raises:
        ConfigError: The run has none of one of them, where it was asked for by its name or none matches at all.
    """
    curves: dict[str, Curve] = {}
    for record in read_lines(run.metrics_path) if run.metrics_path.is_file() else ():
        for name, value in record.items():
            if "/" in name and isinstance(value, (int, float)):
                steps, values = curves.setdefault(name, ([], []))
                steps.append(int(record["step"]))
                values.append(float(value))
    chosen: dict[str, Curve] = {}
    for pattern in wanted:
        matching = {name: curve for name, curve in sorted(curves.items()) if fnmatchcase(name, pattern)}
        if not matching and tuple(wanted) != DEFAULT_METRICS:
            hint = _hint(similar(pattern, curves), list(curves))
            raise ConfigError(f"--metric ({pattern}) must be a metric of {run.name}; {hint}")
        chosen |= matching
    if not chosen:
        raise ConfigError(f"RUN ({run.name}) must have one of {', '.join(wanted)}; it has logged none of them yet")
    return chosen


def _hint(close: list[str], known: list[str]) -> str:
    """Which metrics there are: those with a name like it, else the losses and such of training and evaluation first."""
    if close or not known:
        return f"did you mean {' or '.join(close)}?" if close else "it has logged nothing yet"
    known.sort(key=lambda name: (not name.startswith(("train/", "val/")), name))
    among = ", among others" if len(known) > MOST_NAMED else ""
    return f"it has {', '.join(known[:MOST_NAMED])}{among}"


def draw(
    path: Path, curves: dict[str, dict[str, Curve]], *, title: str = "", log_x: bool = False, log_y: bool = False
) -> None:
    """Write the picture.

    Args:
        path: A PNG, PDF or SVG file.
        curves: Run -> metric -> steps and values.
        title: Above it.
        log_x: Whether steps are on a logarithmic scale.
        log_y: Whether values are.

    Raises:
        ConfigError: matplotlib is missing, or the file cannot be written.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError(f"--out needs the package matplotlib ({error}); pip install 'modlib[plots]'") from None
    names = list(dict.fromkeys(name for of_run in curves.values() for name in of_run))
    figure = Figure(figsize=(7.5, 4.8), dpi=DOTS_PER_INCH, layout="constrained")
    axes: Any = figure.add_subplot()
    for number, (run, of_run) in enumerate(curves.items()):
        for name, (steps, values) in of_run.items():
            kind = names.index(name)
            one_run = len(curves) == 1
            axes.plot(
                steps,
                values,
                color=f"C{kind % 10 if one_run else number % 10}",
                linestyle="-" if one_run else STYLES[kind % len(STYLES)],
                linewidth=1.6,
                label=name if one_run else f"{run}: {name}" if len(names) > 1 else run,
            )
    axes.set_xscale("log" if log_x else "linear")
    axes.set_yscale("log" if log_y else "linear")
    axes.set_xlabel("optimizer steps" + ("  (log scale)" if log_x else ""))
    ends = {name.rpartition("/")[2] for name in names}
    axes.set_ylabel(f"{ends.pop() if len(ends) == 1 else 'value'}{unit_of(names[0])}")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9)
    if title:
        axes.set_title(title, fontsize=12, fontweight="bold")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path)
    except OSError as error:
        raise ConfigError(f"--out ({path}) cannot be written: {error.strerror or error}; choose another") from error
