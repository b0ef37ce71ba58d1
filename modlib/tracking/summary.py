"""The end of a run in the terminal: what came out, where it is, and the next commands to try."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.padding import Padding
from rich.panel import Panel
from rich.text import Text

from modlib.runtime.units import format_count, format_percent, format_seconds
from modlib.tracking.banner import WIDEST, key_values
from modlib.tracking.broker import Missed
from modlib.tracking.jsonl import METRICS_FILE, read_lines
from modlib.tracking.lines import format_value, printable, split_evaluations
from modlib.tracking.tensorboard import TENSORBOARD_FOLDER


@dataclass(frozen=True, kw_only=True)
class RunSummary:
    """What there is to say when an attempt is over.

    Args:
        run_name: Name of the run folder.
        run_path: The run folder.
        reason: In words, e.g. "finished" or "stopped by SIGTERM".
        step: Optimizer steps done.
        num_steps: Optimizer steps in the whole run.
        tokens: Tokens trained on since step 0.
        seconds: Duration of this attempt.
        command: The arguments that started the run, e.g. sys.argv; none if they cannot be given again.
        tokens_per_s: Mean over this attempt, evaluations and checkpoints left out.
        mfu: Mean over this attempt.
        mfu_of: What the MFU is a share of, e.g. "measured matmul peak".
        values: The last value of every metric.
        checkpoints: Those on disk, oldest first.
        sample: The text sample made at the end.
        missed: Subscriber name -> what it missed (Broker.missed).
        writes_text: Whether the model continues a text, so that `modlib generate` makes sense.
        has_metrics: Whether a subscriber wrote metrics.jsonl.
        has_curves: Whether a subscriber wrote TensorBoard's files.
    """

    run_name: str
    run_path: Path
    reason: str
    step: int
    num_steps: int
    tokens: int
    seconds: float
    command: Sequence[str]
    tokens_per_s: float | None = None
    mfu: float | None = None
    mfu_of: str = ""
    values: Mapping[str, float] = field(default_factory=dict)
    checkpoints: Sequence[Path] = ()
    sample: str | None = None
    missed: Mapping[str, Missed] = field(default_factory=dict)
    writes_text: bool = True
    has_metrics: bool = True
    has_curves: bool = True

    @property
    def complete(self) -> bool:
        """Whether the last step was done."""
        return self.step >= self.num_steps


def end_summary(summary: RunSummary) -> RenderableType:
    """The summary of an attempt; it fits itself to the width of the console it is printed on."""
    return _Summary(summary)


@dataclass(frozen=True)
class _Summary:
    summary: RunSummary

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        summary = self.summary
        parts: list[RenderableType] = [key_values(_facts(summary))]
        if summary.sample:
            sample = Text(printable(summary.sample).rstrip(), style="italic")
            parts += ["", Text("sample", style="cyan"), Padding(sample, (0, 0, 0, 2), expand=False)]
        ending = (
            "finished" if summary.complete else summary.reason,
            "bold green" if summary.complete else "bold yellow",
        )
        yield Panel(
            Group(*parts),
            title=Text.assemble((summary.run_name, "bold"), " ", ending),
            title_align="left",
            width=min(options.max_width, WIDEST),
            box=box.ROUNDED,
        )
        for what, command in next_commands(summary):
            yield Text(f"# {what}", style="dim")
            yield Text(broken_up(command, options.max_width), style="bold")


def next_commands(summary: RunSummary) -> list[tuple[str, str]]:
    """(what it does, the command) for what a person may want next, the most wanted first."""
    command = command_line(summary.command)
    run = shlex.quote(str(summary.run_path))
    events = shlex.quote(str(summary.run_path / TENSORBOARD_FOLDER))
    tensorboard = [("look at the curves", f"tensorboard --logdir {events}")] if summary.has_curves else []
    generate = [("let the model write", f"modlib generate {run} --prompt 'import '")] if summary.writes_text else []
    if not summary.complete:
        last = f"continue from step {summary.checkpoints[-1].name}" if summary.checkpoints else "start again"
        commands = [(last.replace("step step-", "step-"), command)] if command else []
        commands += tensorboard
        return commands + generate if summary.checkpoints else commands
    if not command:
        return [*tensorboard, *generate]
    return [
        *tensorboard,
        *generate,
        ("change a parameter: a new run in a folder of its own", f"{_unnamed(summary.command)} --gin_param LR=1e-3"),
        ("continue after an interruption: the same command (this run is complete)", command),
    ]


def command_line(arguments: Sequence[str]) -> str:
    """The arguments as a line for a shell; a Python file gets `python` in front."""
    line = shlex.join(arguments)
    return f"python {line}" if arguments and arguments[0].endswith(".py") else line


def broken_up(command: str, width: int) -> str:
    """The command in lines of at most `width` where that can be, each but the last ending in a backslash."""
    lines = [""]
    for word in map(shlex.quote, shlex.split(command)):
        if lines[-1] and len(lines[-1]) + len(word) + 3 > width:
            lines[-1] += " \\"
            lines.append("    " + word)
        else:
            lines[-1] += f" {word}" if lines[-1] else word
    return "\n".join(lines)


def best_evaluations(run_path: Path) -> dict[str, tuple[float, int]]:
    """The lowest loss of every evaluator in metrics.jsonl: "val/<name>/loss" -> (loss, step)."""
    best: dict[str, tuple[float, int]] = {}
    try:
        for record in read_lines(run_path / METRICS_FILE, containing=b'"val/'):
            for name, value in record.items():
                if name.startswith("val/") and name.endswith("/loss") and value < best.get(name, (float("inf"), 0))[0]:
                    best[name] = (value, record["step"])
    except OSError:
        pass  # no metrics, no best
    return best


def _facts(summary: RunSummary) -> Iterable[tuple[str, str]]:
    yield "steps", f"{summary.step:,} of {summary.num_steps:,}"
    yield "tokens", f"{summary.tokens:,} = {format_count(summary.tokens)}"
    speed = "" if summary.tokens_per_s is None else f", {format_count(summary.tokens_per_s)} tokens/s"
    if summary.mfu is not None:
        speed += f", MFU {format_percent(summary.mfu)}" + (f" of {summary.mfu_of}" if summary.mfu_of else "")
    yield "time", format_seconds(summary.seconds) + speed
    training, evaluations = split_evaluations(summary.values)
    if "train/loss" in training:
        yield "train loss", format_value("loss", training["train/loss"])
    best = best_evaluations(summary.run_path) if evaluations else {}
    for name, values in evaluations.items():
        pairs = [f"{kind.replace('_', ' ')} {format_value(kind, value)}" for kind, value in values.items()]
        lowest = best.get(f"val/{name}/loss")
        yield name, ", ".join(pairs) + (f"; best loss {lowest[0]:.4f} at step {lowest[1]}" if lowest else "")
    if summary.checkpoints:
        more = len(summary.checkpoints) - 1
        yield "checkpoint", str(summary.checkpoints[-1]) + (f" (+{more} older)" if more else "")
    else:
        yield "checkpoint", "none was saved"
    if summary.has_metrics:
        yield "metrics", str(summary.run_path / METRICS_FILE)
    for name, missed in summary.missed.items():
        yield (
            "incomplete",
            f"{name} missed {missed.failed} messages it failed on and {missed.dropped} it was too slow for",
        )


def _unnamed(arguments: Sequence[str]) -> str:
    """The command line without --name: another configuration needs another run folder."""
    kept, skip = [], False
    for argument in arguments:
        if not skip and argument != "--name" and not argument.startswith("--name="):
            kept.append(argument)
        skip = argument == "--name"
    return command_line(kept)
