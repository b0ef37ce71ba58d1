"""The start banner: everything a person wants to check before a run costs anything."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from modlib.runtime.units import counted, format_both, format_bytes, format_flops, format_seconds
from modlib.tracking.plot import plot
from modlib.tracking.run_plan import Plan

WIDE = 110  # columns from which the parameter table and the learning rate stand side by side
WIDEST = 130
FLOPS_CONVENTIONS = {
    "palm": "6N + attention, as in PaLM",
    "causal_half": "6N + the causal half of attention",
    "partly": "forward, and backward where something is trained",
    "parameters": "6N, embeddings left out; the model brings no count of its own",
}


def start_banner(plan: Plan) -> RenderableType:
    """The banner of a plan; it fits itself to the width and the encoding of the console it is printed on."""
    return _Banner(plan)


@dataclass(frozen=True)
class _Banner:
    plan: Plan

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = min(options.max_width, WIDEST)
        inner = width - 4
        if width >= WIDE:
            top: RenderableType = Table.grid(padding=(0, 4))
            assert isinstance(top, Table)
            top.add_row(parameter_table(self.plan), _learning_rate(self.plan, inner - 54, options.ascii_only))
        else:
            top = Group(parameter_table(self.plan), "", _learning_rate(self.plan, inner, options.ascii_only))
        facts = key_values(_facts(self.plan))
        title = Text(self.plan.run_name or "plan", style="bold")
        yield Panel(Group(top, "", facts), title=title, title_align="left", width=width, box=box.ROUNDED)


def parameter_table(plan: Plan) -> Table:
    """Parameters by part of the model, then total, trainable and non-embedding."""
    total = plan.parameters["total"]
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False, show_edge=False)
    table.add_column("parameters", min_width=22)
    table.add_column("count", justify="right", min_width=14)
    table.add_column("share", justify="right")
    for part, count in plan.parameter_table:
        table.add_row(Text(part), f"{count:,}", f"{100 * count / max(total, 1):.1f}%")
    if plan.parameter_table:
        table.add_section()
    for name in ("total", "trainable", "non_embedding"):
        count = plan.parameters[name]
        share = f"{100 * count / max(total, 1):.1f}%"
        table.add_row(name.replace("_", "-"), f"{count:,}", share, style="bold" if name == "total" else "")
    return table


def key_values(rows: Iterable[tuple[str, str]]) -> Table:
    """Names and values in two columns; long values wrap within theirs."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="cyan", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in rows:
        grid.add_row(Text(name), Text(value))
    return grid


def _learning_rate(plan: Plan, width: int, ascii_only: bool) -> RenderableType:
    lines = plot(plan.learning_rates, width=max(20, width), last_x=plan.num_steps, ascii_only=ascii_only)
    if not lines:
        return Text("")
    return Group(Text("learning rate over steps", style="bold"), Text("\n".join(lines), style="green", no_wrap=True))


def _facts(plan: Plan) -> Iterable[tuple[str, str]]:
    yield "tokens per step", f"{plan.tokens_per_step:,} = {_batch_in_words(plan)}"
    steps = f"{plan.num_steps:,}"
    yield "steps", steps if not plan.start_step else f"{steps}, of which {plan.start_step:,} are done"
    yield "tokens", _tokens_in_words(plan)
    if plan.dataset:
        yield "data", _data_in_words(plan)
    counted = FLOPS_CONVENTIONS.get(plan.flops_convention, plan.flops_convention)
    yield (
        "FLOPs",
        f"{format_flops(plan.num_flops)} in total, {format_flops(plan.flops_per_token)} per token ({counted})",
    )
    if plan.estimated_seconds is not None:
        share = f"{100 * plan.assumed_mfu:.0f}% of the peak"
        yield "time", f"about {format_seconds(plan.estimated_seconds)} if training reaches {share}"
    if plan.roles:
        yield "optimizer", "\n".join(plan.roles)
    memory = plan.memory_per_rank_bytes
    parts = ", ".join(f"{name} {format_bytes(size)}" for name, size in memory.items())
    yield "memory per rank", f"about {format_bytes(sum(memory.values()))}: {parts}"
    free = "" if plan.disk_free_bytes is None else f"; {format_bytes(plan.disk_free_bytes)} free on the disk"
    yield "checkpoint", format_bytes(plan.checkpoint_bytes) + free
    yield "hardware", _hardware_in_words(plan)
    for name, where in plan.outputs.items():
        yield name, str(where)
    yield "config hash", plan.config_hash[:16]
    if plan.versions:
        yield "versions", ", ".join(f"{name} {version}" for name, version in plan.versions.items())
    for note in plan.notes:
        yield "note", note


def _batch_in_words(plan: Plan) -> str:
    words = f"{plan.micro_batch_size} sequences x {plan.seq_len} tokens"
    if plan.grad_accum_steps > 1:
        words += f" x {plan.grad_accum_steps} accumulation steps"
    return words + (f" x {plan.world_size} ranks" if plan.world_size > 1 else "")


def _tokens_in_words(plan: Plan) -> str:
    words = format_both(plan.num_tokens)
    if (epochs := plan.num_epochs) is not None:
        words += f", {epochs:.3g} epochs"
    return words + f", {plan.num_tokens / max(1, plan.parameters['total']):.3g} per parameter"


def _data_in_words(plan: Plan) -> str:
    words = [str(plan.dataset["path"])] if "path" in plan.dataset else []
    for name in ("num_tokens", "num_documents"):
        if plan.dataset.get(name) is not None:
            words.append(f"{plan.dataset[name]:,} {name.removeprefix('num_')}")
    if plan.dataset.get("padding") is not None:
        words.append(f"{plan.dataset['padding']:.2%} of the windows is padding")
    if "note" in plan.dataset:
        words.append(str(plan.dataset["note"]))
    return ", ".join(words)


def _hardware_in_words(plan: Plan) -> str:
    words = f"{plan.world_size} x {plan.device}"
    if plan.num_threads:
        words += f", {counted(plan.num_threads, 'thread')} each"
    words += f", {plan.precision}"
    if plan.peak_flops:
        words += f", {format_flops(plan.peak_flops, per_second=True)} per rank"
        words += f" ({plan.peak_source})" if plan.peak_source else ""
    return words
