"""Draws a sweep: a line over one axis, a heat map over two, panels or parallel axes over more."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from modlib.cli.sweeps.dimensions import Dimension, dimensions
from modlib.launching.sweep import Sweep
from modlib.launching.sweep_results import Goal, Result, best_result, is_seed
from modlib.runtime.errors import ConfigError

FORMATS = (".png", ".pdf", ".svg")
FAILED = ("failed", "died")
MOST_PANELS = 12
MOST_TICKS = 12
DOTS_PER_INCH = 150
BEST_COLOR = "#d62728"
LINE_COLOR = "#1f5fa8"
UNITS = {"loss": "nats", "tokens_per_s": "tokens/s", "peak_gib": "GiB", "bits_per_byte": "bits/byte"}


def unit_of(metric: str) -> str:
    """A metric's unit in brackets after a space; "" where it has none."""
    return next((f" [{unit}]" for name, unit in UNITS.items() if metric.endswith(name)), "")


@dataclass(frozen=True)
class Drawing:
    """What every kind of plot needs.

    Args:
        sweep: The sweep.
        found: Its results.
        metric: Drawn.
        goal: Which way it is better.
        dimensions: Of the plot.
    """

    sweep: Sweep
    found: Sequence[Result]
    metric: str
    goal: Goal
    dimensions: Sequence[Dimension]

    @cached_property
    def best(self) -> Result:
        best = best_result(self.found, self.goal)
        assert best is not None
        return best

    @property
    def label(self) -> str:
        """The metric with its unit, in words."""
        word = "lowest" if self.goal == "min" else "highest"
        return f"{word} {self.metric}{unit_of(self.metric)}"

    @cached_property
    def shown(self) -> list[Result]:
        """The results that have a value and did not fail; all that have one where every point failed."""
        valued = [result for result in self.found if result.best is not None]
        return [result for result in valued if result.state not in FAILED] or valued

    def title(self, figure: Any) -> None:
        finished = sum(result.state == "finished" for result in self.found)
        figure.suptitle(f"{self.sweep.name}: {self.label}", fontsize=12, fontweight="bold")
        values = ", ".join(self.best.point.params)
        if len(values) > 10 * figure.get_size_inches()[0]:
            values = ", ".join(f"{key.rpartition('.')[2]}={text}" for key, text in self.best.point.values.items())
        told = f"best: {self.best.best:.4g} at {values}   ({finished} of {len(self.found)} points finished)"
        figure.text(0.5, 0.015, told, ha="center", va="bottom", fontsize=9, color=BEST_COLOR)


def draw(path: Path, sweep: Sweep, found: Sequence[Result], metric: str, goal: Goal) -> None:
    """Write the plot of a sweep.

    Args:
        path: A PNG, PDF or SVG file.
        sweep: The sweep.
        found: Its results for the metric.
        metric: The metric.
        goal: Which way it is better.

    Raises:
        ConfigError: matplotlib is missing, the file cannot be written, or there is nothing to draw.
    """
    if path.suffix.lower() not in FORMATS:
        raise ConfigError(f"--plot ({path}) must end in {', '.join(FORMATS)}; name a file of one of these kinds")
    if best_result(found, goal) is None:
        raise ConfigError(f"--plot ({path}) needs a point that has {metric}; run the sweep first, or choose a --metric")
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError(f"--plot needs the package matplotlib ({error}); pip install 'modlib[plots]'") from None
    drawing = Drawing(sweep, found, metric, goal, dimensions(sweep))
    size, plot = _kind(drawing)
    figure = Figure(figsize=size, dpi=DOTS_PER_INCH, layout="constrained")
    figure.get_layout_engine().set(rect=(0.01, 0.05, 0.98, 0.94), h_pad=0.1)  # type: ignore[union-attr,call-arg]
    plot(figure, drawing)
    drawing.title(figure)
    try:
        figure.savefig(path)
    except OSError as error:
        raise ConfigError(f"--plot ({path}) cannot be written: {error.strerror or error}; choose another") from error


def _kind(drawing: Drawing) -> tuple[tuple[float, float], Callable[[Any, Drawing], None]]:
    """Size in inches and function of the plot that fits the dimensions."""
    sizes = [len(one.levels) for one in drawing.dimensions]
    drawn = sum(one.drawn is not None for one in drawing.dimensions)
    if len(sizes) == 1:
        return (7.5, 4.8), _line
    if len(sizes) == 2 and drawn == 2:
        return (7.5, 5.2), _scatter
    if len(sizes) == 2 and drawn == 1:
        return (7.5, 4.8), _lines
    if not drawn and math.prod(sizes[2:]) <= MOST_PANELS:
        panels = math.prod(sizes[2:])
        columns = _columns(panels)
        width, height = 1.6 + 0.8 * max(sizes[0], 3), 1.4 + 0.5 * max(sizes[1], 3)
        return (max(6.5, columns * width + 1.0), max(4.2, math.ceil(panels / columns) * height + 0.8)), _heat_maps
    return (max(7.5, 1.6 * (len(sizes) + 1) + 1.5), 5.2), _parallel


def _columns(panels: int) -> int:
    return 2 if panels in (2, 4) else min(panels, 3)


def _line(figure: Any, drawing: Drawing) -> None:
    axes = figure.add_subplot()
    (dimension,) = drawing.dimensions
    _curve(axes, dimension, drawing.shown, None, LINE_COLOR)
    _failures(axes, dimension, drawing)
    _finish(axes, dimension, drawing)


def _lines(figure: Any, drawing: Drawing) -> None:
    """One curve over the drawn dimension for each value of the listed one."""
    from matplotlib import colormaps

    axes = figure.add_subplot()
    drawn, listed = sorted(drawing.dimensions, key=lambda one: one.drawn is None)
    for number, (level, label) in enumerate(zip(listed.levels, listed.labels())):
        chosen = [result for result in drawing.shown if listed.level_of(result) == level]
        color = colormaps["viridis"](number / max(1, len(listed.levels) - 1) * 0.9)
        _curve(axes, drawn, chosen, label, color)
    _failures(axes, drawn, drawing)
    _finish(axes, drawn, drawing)
    axes.legend(title=listed.name, frameon=False, fontsize=9)


def _curve(axes: Any, dimension: Dimension, shown: Sequence[Result], label: str | None, color: Any) -> None:
    """Means over seeds, joined where the dimension has a scale, with a band from the least to the largest."""
    groups: dict[float, list[float]] = {}
    for result in shown:
        assert result.best is not None
        groups.setdefault(dimension.place(result), []).append(result.best)
    places = sorted(groups)
    means = [sum(groups[place]) / len(groups[place]) for place in places]
    joined = "-" if dimension.numbers else "none"
    axes.plot(places, means, linestyle=joined, marker="o", color=color, label=label, zorder=3)
    if not any(len(values) > 1 for values in groups.values()):
        return
    least, largest = ([pick(groups[place]) for place in places] for pick in (min, max))
    if dimension.numbers and len(places) > 1:
        axes.fill_between(places, least, largest, color=color, alpha=0.18, linewidth=0, zorder=1)
    else:
        axes.vlines(places, least, largest, color=color, alpha=0.5, linewidth=2, zorder=2)
    dots = [(place, value) for place in places for value in groups[place]]
    axes.plot(*zip(*dots), marker=".", linestyle="none", color=color, alpha=0.5, markersize=6, zorder=2)


def _failures(axes: Any, dimension: Dimension, drawing: Drawing) -> None:
    """Crosses on the upper edge, where the points that failed would be."""
    failed = [dimension.place(result) for result in drawing.found if result.state in FAILED]
    if failed:
        axes.plot(
            failed, [0.97] * len(failed), linestyle="", marker="x", color="black", markersize=8, mew=2,
            transform=axes.get_xaxis_transform(), label="failed", zorder=4,
        )  # fmt: skip


def _finish(axes: Any, dimension: Dimension, drawing: Drawing) -> None:
    best = drawing.best
    axes.plot(
        [dimension.place(best)], [best.best], linestyle="", marker="*", color=BEST_COLOR, markersize=15,
        label=f"best: {best.best:.4g}", zorder=5,
    )  # fmt: skip
    _scale(axes, dimension)
    repeats = any(is_seed(key) for key in best.point.values) and not any(map(is_seed, dimension.keys))
    axes.set_ylabel(drawing.label + ("\nmean and range over seeds" if repeats else ""))
    axes.margins(y=0.12)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9)


def _scale(axes: Any, dimension: Dimension) -> None:
    """The x axis: a scale with the swept values on it, or names."""
    axes.set_xlabel(dimension.name)
    few = dimension.drawn is None and len(dimension.levels) <= MOST_TICKS
    if dimension.numbers is None:
        axes.set_xlim(-0.5, len(dimension.levels) - 0.5)
        places: Sequence[float] = range(len(dimension.levels))
    else:
        places = dimension.numbers
        if dimension.is_log:
            axes.set_xscale("log")
            axes.set_xlabel(f"{dimension.name}  (log scale)")
    if few or dimension.numbers is None:
        labels = dimension.labels()
        crowded = sum(map(len, labels)) > 70
        axes.set_xticks(places, labels, rotation=30 if crowded else 0, ha="right" if crowded else "center")
        axes.minorticks_off()


def _scatter(figure: Any, drawing: Drawing) -> None:
    axes = figure.add_subplot()
    across, up = drawing.dimensions
    shown = drawing.shown
    dots = axes.scatter(
        [across.place(result) for result in shown],
        [up.place(result) for result in shown],
        c=[result.best for result in shown],
        cmap=_colors(drawing),
        s=70,
        edgecolors="black",
        linewidths=0.5,
        zorder=3,
    )
    failed = [result for result in drawing.found if result.state in FAILED]
    if failed:
        places = [[one.place(result) for result in failed] for one in (across, up)]
        axes.plot(*places, "x", color="black", markersize=8, mew=2, label="failed")
    best = [one.place(drawing.best) for one in (across, up)]
    axes.plot(
        [best[0]], [best[1]], "*", color=BEST_COLOR, markeredgecolor="white", markersize=18, zorder=4,
        label=f"best: {drawing.best.best:.4g}",
    )  # fmt: skip
    for set_scale, set_label, one in (
        (axes.set_xscale, axes.set_xlabel, across),
        (axes.set_yscale, axes.set_ylabel, up),
    ):
        set_scale("log" if one.is_log else "linear")
        set_label(one.name + ("  (log scale)" if one.is_log else ""))
    axes.grid(alpha=0.25)
    axes.legend(frameon=True, fontsize=9)
    figure.colorbar(dots, label=drawing.label)


def _colors(drawing: Drawing) -> str:
    """A color map whose bright end is the better one."""
    return "viridis_r" if drawing.goal == "min" else "viridis"


def _heat_maps(figure: Any, drawing: Drawing) -> None:
    """One heat map for each combination of the third and further dimensions."""
    across, up, *others = drawing.dimensions
    combinations = list(itertools.product(*(one.levels for one in others)))
    columns = _columns(len(combinations))
    rows = math.ceil(len(combinations) / columns)
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    cells = _cells(drawing)
    values = [value for value in cells.values() if value is not None]
    span = min(values), max(values)
    image = None
    for number, panel in enumerate(panels):
        if number >= len(combinations):
            panel.set_axis_off()
            continue
        image = _heat_map(panel, drawing, cells, combinations[number], span)
        if others:
            names = (f"{one.name} = {', '.join(level)}" for one, level in zip(others, combinations[number]))
            panel.set_title("\n".join(names), fontsize=10)
        if number + columns >= len(combinations):
            panel.set_xlabel(across.name)
        if number % columns == 0:
            panel.set_ylabel(up.name)
    repeats = any(is_seed(key) for key in drawing.best.point.values)
    figure.colorbar(image, ax=list(panels), label=drawing.label + (", mean over seeds" if repeats else ""))


Cell = tuple[tuple[str, ...], ...]


def _cells(drawing: Drawing) -> dict[Cell, float | None]:
    """The mean over seeds for the levels of all dimensions; None for points without a value."""
    values: dict[Cell, list[float]] = {}
    for result in drawing.found:
        cell = values.setdefault(tuple(one.level_of(result) for one in drawing.dimensions), [])
        if result.best is not None and result in drawing.shown:
            cell.append(result.best)
    return {cell: sum(found) / len(found) if found else None for cell, found in values.items()}


def _heat_map(
    panel: Any, drawing: Drawing, cells: dict[Cell, float | None], rest: Cell, span: tuple[float, float]
) -> Any:
    import numpy as np
    from matplotlib.patches import Rectangle

    across, up = drawing.dimensions[:2]
    grid = np.full((len(up.levels), len(across.levels)), np.nan)
    for (row, y), (column, x) in itertools.product(enumerate(up.levels), enumerate(across.levels)):
        mean = cells.get((x, y, *rest))
        grid[row, column] = np.nan if mean is None else mean
    image = panel.imshow(grid, origin="lower", aspect="auto", cmap=_colors(drawing), vmin=span[0], vmax=span[1])
    for row, column in np.ndindex(grid.shape):
        value = grid[row, column]
        if np.isnan(value):
            panel.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, hatch="///", edgecolor="0.7", lw=0))
            text, color = _absent(drawing, (across.levels[column], up.levels[row], *rest)), "0.25"
        else:
            red, green, blue, _ = image.cmap(image.norm(value))
            text, color = f"{value:.4g}", "black" if 0.3 * red + 0.6 * green + 0.1 * blue > 0.5 else "white"
        panel.text(column, row, text, ha="center", va="center", color=color, fontsize=9)
    best = tuple(one.level_of(drawing.best) for one in drawing.dimensions)
    if best[2:] == rest:
        corner = across.levels.index(best[0]) - 0.47, up.levels.index(best[1]) - 0.47
        panel.add_patch(Rectangle(corner, 0.94, 0.94, fill=False, edgecolor=BEST_COLOR, lw=3))
    labels = across.labels()
    crowded = sum(map(len, labels)) > 40
    panel.set_xticks(range(len(labels)), labels, rotation=30 if crowded else 0, ha="right" if crowded else "center")
    panel.set_yticks(range(len(up.levels)), up.labels())
    return image


def _absent(drawing: Drawing, cell: Cell) -> str:
    states = {
        result.state for result in drawing.found if tuple(one.level_of(result) for one in drawing.dimensions) == cell
    }
    return next((state for state in FAILED if state in states), min(states, default=""))


def _parallel(figure: Any, drawing: Drawing) -> None:
    """One vertical axis for each dimension and one for the metric; a line for each point."""
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    axes = figure.add_subplot()
    shown = drawing.shown
    values = [result.best or 0.0 for result in shown]
    norm = Normalize(min(values), max(values))
    colors = colormaps[_colors(drawing)]
    worst_first = sorted(shown, key=lambda result: result.best or 0.0, reverse=drawing.goal == "min")
    for result in worst_first:
        assert result.best is not None
        heights = [_height(one, one.place(result)) for one in drawing.dimensions] + [norm(result.best)]
        is_best = result is drawing.best
        axes.plot(
            range(len(heights)), heights, color=BEST_COLOR if is_best else colors(norm(result.best)),
            linewidth=3 if is_best else 1.3, alpha=1.0 if is_best else 0.75, marker="o", markersize=4,
        )  # fmt: skip
    for number, one in enumerate(drawing.dimensions):
        axes.axvline(number, color="0.4", linewidth=1, zorder=0)
        for place, label in _marks(one):
            axes.text(
                number - 0.03, _height(one, place), label, ha="right", va="center", fontsize=8,
                bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.7, "pad": 0.5},
            )  # fmt: skip
    axes.axvline(len(drawing.dimensions), color="0.4", linewidth=1, zorder=0)
    names = [one.name + ("\n(log scale)" if one.is_log else "") for one in drawing.dimensions]
    axes.set_xticks(range(len(names) + 1), [*names, drawing.metric], fontsize=9)
    axes.set_xlim(-0.45, len(names) + 0.15)
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    figure.colorbar(ScalarMappable(norm, colors), ax=axes, label=drawing.label)


def _height(dimension: Dimension, place: float) -> float:
    """From 0 to 1 on a vertical axis."""
    places = dimension.numbers or list(map(float, range(len(dimension.levels))))
    least, largest = min(places), max(places)
    if largest == least:
        return 0.5
    if dimension.is_log:
        place, least, largest = math.log(place), math.log(least), math.log(largest)
    return (place - least) / (largest - least)


def _marks(dimension: Dimension) -> list[tuple[float, str]]:
    """What to write beside a vertical axis: all values, or the ends of many."""
    places = dimension.numbers or list(map(float, range(len(dimension.levels))))
    marks = list(zip(places, dimension.labels()))
    return marks if len(marks) <= MOST_TICKS else [marks[0], marks[len(marks) // 2], marks[-1]]
