"""Results on stderr: a table at every evaluation and at the end, or plain lines where there is no terminal."""

from __future__ import annotations

import io
import math
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from modlib.components import component
from modlib.runtime.console import PlainConsole
from modlib.runtime.errors import require_choices
from modlib.tracking.lines import format_value
from modlib.tracking.messages import MetricsLogged, RunEnded, RunStarted

Every = Literal["evaluation", "log"]
Style = Literal["auto", "table", "lines"]


@component("results_subscriber", "rich", runtime_args=("run_path",))
class RichResults:
    """Shows all metrics, and their change since they were last shown, at every evaluation.

    The end of the run shows them, too, where the last evaluation did not show them all.

    On a terminal a table, above the progress line where there is one; elsewhere one line `results step=... name=value
    (change)` for each metric. Everything on stderr.

    Args:
        run_path: The run folder; known at run time.
        every: "evaluation" shows a table when evaluation metrics are logged; "log" whenever anything is.
        style: "auto" takes the table when stderr is a terminal; "table" and "lines" force one of them.
    """

    receives = (RunStarted, MetricsLogged, RunEnded)

    def __init__(
        self,
        run_path: Path | None = None,  # noqa: ARG002  every subscriber is called with it
        *,
        every: Every = "evaluation",
        style: Style = "auto",
    ) -> None:
        require_choices(every=(every, Every), style=(style, Style))
        self._every = every
        self._style = style
        self._name = ""
        self._values: dict[str, float] = {}
        self._shown: dict[str, float] = {}

    def receive(self, message: Any) -> None:
        if isinstance(message, RunStarted):
            self._name = message.run_name
        elif isinstance(message, MetricsLogged):
            self._values.update(message.values)
            if self._every == "log" or any(name.startswith("val/") for name in message.values):
                self._show(message.step, f"step {message.step}")
        elif isinstance(message, RunEnded):
            self._values.update(message.values)
            if self._values == self._shown:
                return  # the last evaluation has just shown them
            self._show(message.step, f"{message.reason} at step {message.step}")

    def close(self) -> None:
        pass

    def _show(self, step: int, when: str) -> None:
        if sys.stderr is None:
            return
        if self._style == "table" or (self._style == "auto" and _is_terminal()):
            text = _drawn(results_table(f"{self._name}, {when}", self._values, self._shown))
        else:
            text = "".join(f"results step={step} {line}\n" for line in result_lines(self._values, self._shown))
        encoding = getattr(sys.stderr, "encoding", None) or "utf-8"
        sys.stderr.write(text.encode(encoding, "replace").decode(encoding))
        sys.stderr.flush()
        self._shown = dict(self._values)


def results_table(title: str, values: Mapping[str, float], before: Mapping[str, float]) -> Group:
    """Metric, value and change, evaluations first.

    Args:
        title: Over the table.
        values: Metric name -> value.
        before: Metric name -> the value to compare with; a metric that is not in it has no change.
    """
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("metric")
    table.add_column("value", justify="right")
    table.add_column("change", justify="right")
    for name in _in_order(values):
        change = _change(name, values, before)
        style = "bold" if name.startswith("val/") else ""
        table.add_row(Text(name, style=style), Text(format_value(name, values[name]), style=style), change)
    return Group(Text(title, style="bold"), table)  # a title of the table itself would wrap at its width


def result_lines(values: Mapping[str, float], before: Mapping[str, float]) -> list[str]:
    """`val/validation/loss=4.1234 (-0.0210)`, evaluations first; arguments as for `results_table`."""
    lines = []
    for name in _in_order(values):
        change = _change(name, values, before)
        lines.append(f"{name}={format_value(name, values[name])}" + (f" ({change})" if change else ""))
    return lines


def _in_order(values: Mapping[str, float]) -> list[str]:
    return sorted(values, key=lambda name: not name.startswith("val/"))  # stable: as logged otherwise


def _change(name: str, values: Mapping[str, float], before: Mapping[str, float]) -> str:
    if name not in before:
        return ""
    difference = values[name] - before[name]
    if not math.isfinite(difference):
        return ""
    return ("+" if difference > 0 else "-" if difference < 0 else "±") + format_value(name, abs(difference))


def _drawn(table: Group) -> str:
    """The table as text with the terminal's colours: written in one piece, and through whatever stands for stderr."""
    text = io.StringIO()
    PlainConsole(file=text, force_terminal=True, width=_width(), legacy_windows=False).print(table)
    return text.getvalue()


def _width() -> int:
    try:
        return max(40, os.get_terminal_size(sys.__stderr__.fileno()).columns)  # type: ignore[union-attr]
    except (OSError, ValueError, AttributeError):
        return 100


def _is_terminal() -> bool:
    try:
        return sys.stderr.isatty() and os.environ.get("TERM", "") not in ("dumb", "unknown")
    except ValueError:  # closed
        return False
