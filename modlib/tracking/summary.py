"""The end of a run in the terminal: what came out, where it is, and the next commands to try."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.padding import Padding
from rich.panel import Panel
from rich.text import Text

from modlib.runtime.run_folder import SWEEP_FILE
from modlib.runtime.shell import broken_up
from modlib.runtime.units import format_both, format_count, format_percent, format_seconds
from modlib.tracking.banner import WIDEST, key_values
from modlib.tracking.jsonl import METRICS_FILE
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
        change: A binding that makes another experiment of it, e.g. "LR=5e-4"; None: none is known.
        tokens_per_s: Mean over this attempt, evaluations and checkpoints left out.
        mfu: Mean over this attempt.
        mfu_of: What the MFU is a share of, e.g. "measured matmul peak".
        values: The last value of every metric.
        best: The lowest loss of every evaluator, "val/<name>/loss" -> (loss, step).
        checkpoints: Those on disk, oldest first.
        sample: The text sample made at the end.
        incomplete: What could not be written or recorded, a line each.
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
    change: str | None = None
    tokens_per_s: float | None = None
    mfu: float | None = None
    mfu_of: str = ""
    values: Mapping[str, float] = field(default_factory=dict)
    best: Mapping[str, tuple[float, int]] = field(default_factory=dict)
    checkpoints: Sequence[Path] = ()
    sample: str | None = None
    incomplete: Sequence[str] = ()
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


def next_commands(summary: RunSummary) -> list[tuple[str, Sequence[str]]]:
    """(what it does, the words of the command) for what a person may want next, the most wanted first."""
    command, run = summary.command, str(summary.run_path)
    events = str(summary.run_path / TENSORBOARD_FOLDER)
    tensorboard: list[tuple[str, Sequence[str]]] = []
    if summary.has_curves:
        tensorboard.append(("look at the curves", ("tensorboard", "--logdir", events)))
    generate: list[tuple[str, Sequence[str]]] = []
    if summary.writes_text:
        generate.append(("let the model write", ("modlib", "generate", run, "--prompt", "import ")))
    if not summary.complete:
        last = f"continue from {summary.checkpoints[-1].name}" if summary.checkpoints else "start again"
        again = [(last, command)] if command else []
        return [*again, *tensorboard, *(generate if summary.checkpoints else [])]
    found = [*tensorboard, *generate]
    if command and summary.change:
        found.append(("change a parameter: a new run in a folder of its own", changed(command, summary.change)))
    if command:
        found.append(("continue after an interruption: the same command (this run is complete)", command))
    return found


def changed(arguments: Sequence[str], binding: str) -> list[str]:
    """The call of launch.py that makes a run of its own with one more parameter.

    Left out is what would make it the same run or none: its name, --resume, and a value for that parameter. The point
    of a sweep becomes a run beside the sweep.
    """
    key = _key(binding)
    kept: list[str] = []
    words = iter(arguments)
    for word in words:
        flag, equals, value = word.partition("=") if word.startswith("--") else (word, "", "")
        flag = flag.replace("-", "_").replace("__", "--", 1) if word.startswith("--") else flag
        if flag not in ("--name", "--resume", "--gin_param", "--runs_dir"):
            kept.append(word)
            continue
        value = value if equals else next(words, "")
        if flag == "--runs_dir" and (Path(value) / SWEEP_FILE).is_file():
            value = str(Path(value).parent)
        if flag == "--runs_dir" or (flag == "--gin_param" and _key(value) != key):
            kept += [flag, value]
    return [*kept, "--gin_param", binding]


def _key(binding: str) -> str:
    return binding.partition("=")[0].strip()


def _facts(summary: RunSummary) -> Iterable[tuple[str, str]]:
    yield "steps", f"{summary.step:,} of {summary.num_steps:,}"
    yield "tokens", format_both(summary.tokens)
    speed = "" if summary.tokens_per_s is None else f", {format_count(summary.tokens_per_s)} tokens/s"
    if summary.mfu is not None:
        speed += f", MFU {format_percent(summary.mfu)}" + (f" of {summary.mfu_of}" if summary.mfu_of else "")
    yield "time", format_seconds(summary.seconds) + speed
    training, evaluations = split_evaluations(summary.values)
    if "train/loss" in training:
        yield "train loss", format_value("loss", training["train/loss"])
    for name, values in evaluations.items():
        pairs = [f"{kind.replace('_', ' ')} {format_value(kind, value)}" for kind, value in values.items()]
        lowest = summary.best.get(f"val/{name}/loss")
        yield name, ", ".join(pairs) + (f"; best loss {lowest[0]:.4f} at step {lowest[1]}" if lowest else "")
    if summary.checkpoints:
        more = len(summary.checkpoints) - 1
        yield "checkpoint", str(summary.checkpoints[-1]) + (f" (+{more} older)" if more else "")
    else:
        yield "checkpoint", "none was saved"
    if summary.has_metrics:
        yield "metrics", str(summary.run_path / METRICS_FILE)
    for line in summary.incomplete:
        yield "incomplete", line
