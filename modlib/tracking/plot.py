"""A curve as a few lines of text."""

from __future__ import annotations

import math
from collections.abc import Sequence

_BLOCKS = " ▁▂▃▄▅▆▇█"
_ASCII = " .:#"


def plot(
    values: Sequence[float],
    *,
    width: int = 60,
    height: int = 5,
    last_x: int | None = None,
    ascii_only: bool = False,
) -> list[str]:
    """The values as an area over 0, with the largest value and the two ends of the x axis written beside it.

    Args:
        values: Evenly spaced, at least 0; what is not finite leaves a gap.
        width: Characters per line, labels included; at least 20.
        height: Lines of the area; two lines for the x axis follow.
        last_x: The number under the last value; default their count.
        ascii_only: For terminals that cannot show block characters.

    Returns:
        height + 2 lines, none longer than `width`; no lines when there is no finite value.
    """
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return []
    top = max(finite)
    label = f"{top:.3g}"
    columns = max(8, width - len(label) - 3)
    corner, wall, floor, tick = ("+", "|", "-", "+") if ascii_only else ("└", "│", "─", "┤")
    shades = _ASCII if ascii_only else _BLOCKS
    levels = [_level(value, top, height * (len(shades) - 1)) for value in _resampled(values, columns)]
    lines = []
    for row in range(height - 1, -1, -1):
        cells = (shades[min(max(level - row * (len(shades) - 1), 0), len(shades) - 1)] for level in levels)
        margin = f"{label} {tick}" if row == height - 1 else f"{'':>{len(label)}} {wall}"
        lines.append(margin + "".join(cells))
    last = str(len(values) if last_x is None else last_x)
    lines.append(f"{0:>{len(label)}} {corner}" + floor * columns)
    lines.append(f"{'':>{len(label)}}  0" + last.rjust(columns - 1))
    return [line.rstrip() for line in lines]


def _resampled(values: Sequence[float], count: int) -> list[float]:
    """`count` values: the largest finite one of every column's share, so that no peak is lost."""
    columns = []
    for column in range(count):
        first = column * len(values) // count
        share = values[first : max(first + 1, (column + 1) * len(values) // count)]
        columns.append(max((value for value in share if math.isfinite(value)), default=math.nan))
    return columns


def _level(value: float, top: float, levels: int) -> int:
    """Eighths (or thirds) of a line to fill; a value above 0 fills at least one."""
    if not math.isfinite(value) or value <= 0 or top <= 0:
        return 0
    return max(1, round(value / top * levels))


def bars(rows: Sequence[tuple[str, float]], *, width: int = 60, ascii_only: bool = False) -> list[str]:
    """One horizontal bar per row: its label, the bar, its value; the largest value fills the width.

    Args:
        rows: Label and value, at least 0, of each.
        width: Characters per line, label and value included; at least 8 are left for the bar.
        ascii_only: For terminals that cannot show block characters.
    """
    values = [f"{value:,.0f}" for _, value in rows]
    margin = max((len(label) for label, _ in rows), default=0)
    columns = max(8, width - margin - 3 - max(map(len, values), default=0))
    top = max((value for _, value in rows), default=0)
    shades = " #" if ascii_only else " ▏▎▍▌▋▊▉█"
    full = len(shades) - 1
    lines = []
    for (label, value), text in zip(rows, values, strict=True):
        level = _level(value, top, columns * full)
        bar = shades[-1] * (level // full) + (shades[level % full] if level % full else "")
        lines.append(f"{label:>{margin}} {'|' if ascii_only else '│'}{bar} {text}")
    return lines
