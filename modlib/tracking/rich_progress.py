"""The run in the terminal: a live progress line, or plain lines where there is no terminal. Everything on stderr."""

from __future__ import annotations

import logging
import os
import sys
import time
from pathlib import Path
from typing import Any, Literal, TextIO

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from modlib.components import component
from modlib.runtime.console import PlainConsole
from modlib.runtime.errors import require_choices
from modlib.runtime.units import format_bytes, format_seconds
from modlib.tracking.lines import Clock, Lines, format_value, printable, split_evaluations
from modlib.tracking.messages import (
    CheckpointSaved,
    MetricsLogged,
    Notice,
    RunEnded,
    RunStarted,
    StepDone,
    TextLogged,
)

# (metric, label before the value, label where the terminal is narrow, unit after it), the most wanted first
Style = Literal["auto", "live", "lines"]
SHOWN = (
    ("train/loss", "loss ", "loss ", ""),
    ("train/lr", "lr ", "lr ", ""),
    ("train/grad_norm", "grad norm ", "grad ", ""),
    ("throughput/tokens_per_s", "", "", " tok/s"),
    ("throughput/mfu", "MFU ", "MFU ", ""),
    ("throughput/data_wait", "data wait ", "wait ", ""),
    ("memory/peak_gib", "memory ", "", ""),
    ("train/router_balance_loss", "router balance ", "balance ", ""),
)
LEVEL_STYLES = {"info": "cyan", "warning": "yellow", "error": "bold red"}


@component("progress_subscriber", "rich", runtime_args=("run_path",))
class RichProgress:
    """Progress on stderr: a live line on a terminal, one plain `key=value` line per log step elsewhere.

    Args:
        run_path: The run folder; known at run time.
        style: "auto" takes the live line when stderr is a terminal; "live" and "lines" force one of them.
        refresh_per_second: Redraws of the live line.
    """

    receives = (RunStarted, StepDone, MetricsLogged, TextLogged, CheckpointSaved, Notice, RunEnded)

    def __init__(
        self,
        run_path: Path | None = None,  # noqa: ARG002  every subscriber is called with it
        *,
        style: Style = "auto",
        refresh_per_second: float = 2.0,
    ) -> None:
        require_choices(style=(style, Style))
        live = style == "live" or (style == "auto" and _is_terminal(sys.stderr))
        self._view: _Live | _Plain = _Live(refresh_per_second) if live else _Plain()

    def receive(self, message: Any) -> None:
        self._view.receive(message)

    def close(self) -> None:
        self._view.close()


class _Plain:
    """Lines on stderr, whatever it is; nothing is written once it is gone."""

    def __init__(self) -> None:
        self._lines = Lines()

    def receive(self, message: Any) -> None:
        if isinstance(message, StepDone) or sys.stderr is None:
            return
        for line in self._lines.of(message, time.time()):
            encoding = getattr(sys.stderr, "encoding", None) or "utf-8"
            sys.stderr.write(line.encode(encoding, "replace").decode(encoding) + "\n")
        sys.stderr.flush()

    def close(self) -> None:
        pass


class _Live:
    """Two lines at the bottom of the terminal; evaluations, checkpoints, samples and notices scroll by above them."""

    def __init__(self, refresh_per_second: float, console: Console | None = None) -> None:
        self._console = console or _QuietConsole(stderr=True, force_terminal=True)
        self._refresh_per_second = refresh_per_second
        self._live: Live | None = None
        self._moved_handlers: list[tuple[logging.StreamHandler[Any], Any]] = []
        self._name = ""
        self._clock = Clock(0, 0, time.time())
        self._values: dict[str, float] = {}

    def receive(self, message: Any) -> None:
        if isinstance(message, RunStarted):
            self._start(message)
        elif isinstance(message, StepDone):
            self._clock.saw(message.step, time.time())
        elif isinstance(message, MetricsLogged):
            self._clock.saw(message.step, message.time)
            training, evaluations = split_evaluations(message.values)
            self._values.update(training)
            for name, values in evaluations.items():
                self._print(evaluation_line(message.step, name, values))
        elif isinstance(message, CheckpointSaved):
            self._print(checkpoint_line(message))
        elif isinstance(message, TextLogged):
            self._print(sample_block(message))
        elif isinstance(message, Notice):
            self._print(Text(message.text, style=LEVEL_STYLES.get(message.level, "")))
        elif isinstance(message, RunEnded):
            self._stop()

    def close(self) -> None:
        self._stop()

    def __rich__(self) -> RenderableType:
        return progress_lines(self._name, self._clock, self._values, time.time(), self._console.width)

    def _start(self, message: RunStarted) -> None:
        self._name = message.run_name
        self._clock = Clock(message.start_step, message.num_steps, time.time())
        self._live = Live(
            self,
            console=self._console,
            refresh_per_second=self._refresh_per_second,
            redirect_stdout=_is_terminal(sys.stdout),  # a redirected stdout must keep its lines
            redirect_stderr=True,
        )
        before = sys.stderr
        self._live.start(refresh=True)
        self._move_log_handlers(before, sys.stderr)

    def _stop(self) -> None:
        if self._live is not None:
            live, self._live = self._live, None
            try:
                live.stop()
            finally:
                for handler, stream in self._moved_handlers:
                    handler.setStream(stream)
                self._moved_handlers.clear()

    def _move_log_handlers(self, before: TextIO, now: TextIO) -> None:
        """Log lines go above the live line: handlers made earlier still hold the stream that it took over."""
        if now is before:
            return
        for handler in (*logging.getLogger().handlers, *logging.getLogger("modlib").handlers):
            if isinstance(handler, logging.StreamHandler) and handler.stream is before:
                self._moved_handlers.append((handler, before))
                handler.setStream(now)

    def _print(self, renderable: RenderableType) -> None:
        self._console.print(renderable, soft_wrap=isinstance(renderable, Text))


class _QuietConsole(PlainConsole):
    """rich answers a broken pipe by ending the process; here the display ends and training goes on."""

    def on_broken_pipe(self) -> None:
        self.quiet = True


def progress_lines(name: str, clock: Clock, values: dict[str, float], now: float, width: int) -> RenderableType:
    """The live display: a bar with step, elapsed and remaining time, and the newest metrics that fit in one line.

    Args:
        name: Of the run.
        clock: Steps done and their pace.
        values: Metric name -> newest value.
        now: Unix time in seconds.
        width: Columns of the terminal.
    """
    done, total = clock.step, clock.num_steps
    left = clock.eta(now)
    remaining = "" if left is None or done >= total else f", {format_seconds(left)} left"
    share = 100 * done / total if total else 0.0
    bar = Table.grid(padding=(0, 1), expand=True)
    for ratio in (None, 1, None, None, None):
        bar.add_column(ratio=ratio, no_wrap=True, overflow="crop")
    bar.add_row(
        Text(name[: width // 3] if width >= 60 else "", style="bold"),
        ProgressBar(total=max(total, 1), completed=done),
        Text(f"{done}/{total}", style="cyan"),
        Text(f"{share:3.0f}%"),
        Text(format_seconds(clock.elapsed(now)) + remaining, style="dim"),
    )
    return Group(bar, metrics_line(values, width))


def metrics_line(values: dict[str, float], width: int) -> Text:
    """`loss 3.4412  lr 9.80e-04  ...` in `width` columns: shorter labels, then fewer metrics where it is too narrow."""
    if not any(name in values for name, *_ in SHOWN):
        return Text("the first step takes longest", style="dim")
    for short, gap in ((False, 2), (True, 2), (True, 1)):
        pieces = [
            Text.assemble(
                (narrow if short else label, "dim"),
                (format_value(name, values[name]), "bold green" if name == "train/loss" else ""),
                (unit, "dim"),
            )
            for name, label, narrow, unit in SHOWN
            if name in values
        ]
        if sum(piece.cell_len + gap for piece in pieces) - gap <= width:
            break
    while len(pieces) > 1 and sum(piece.cell_len + gap for piece in pieces) - gap > width:
        pieces.pop()
    return Text(" " * gap, no_wrap=True).join(pieces)


def evaluation_line(step: int, name: str, values: dict[str, float]) -> Text:
    """`eval  step 200  validation: loss 4.1234  perplexity 61.8  bits per byte 1.9021`."""
    line = Text.assemble(("eval        ", "bold magenta"), (f"step {step}  ", "cyan"), (f"{name}:", ""))
    for kind, value in values.items():
        line.append("  " + kind.replace("_", " ") + " ", style="dim")
        line.append(format_value(kind, value), style="bold" if kind == "loss" else "")
    return line


def checkpoint_line(message: CheckpointSaved) -> Text:
    """`checkpoint  step 200  48 MiB in 0.4s`."""
    return Text.assemble(
        ("checkpoint  ", "bold blue"),
        (f"step {message.step}  ", "cyan"),
        (f"{format_bytes(message.bytes)} in {format_seconds(message.seconds)}", ""),
    )


def sample_block(message: TextLogged) -> RenderableType:
    """A sample's text, indented under a title."""
    title = Text.assemble((f"{message.tag:<12}", "bold yellow"), (f"step {message.step}", "cyan"))
    return Group(title, Padding(Text(printable(message.text), style="italic"), (0, 0, 0, 4), expand=False))


def _is_terminal(stream: Any) -> bool:
    try:
        return stream is not None and stream.isatty() and os.environ.get("TERM", "") not in ("dumb", "unknown")
    except ValueError:  # closed
        return False
