"""`python launch.py`: check everything, then train here."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack, chdir, nullcontext
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from modlib.cli.completion import complete_gin_file, complete_run
from modlib.cli.lazy import SETTINGS
from modlib.cli.literal_help import LiteralHelp
from modlib.cli.options import RUNS, GinParams, RunsDir
from modlib.cli.report import reported
from modlib.runtime.run_folder import RunFolder
from modlib.runtime.shell import command_line
from modlib.runtime.signals import answered, installed
from modlib.runtime.streams import secure_streams


class LaunchCommand(LiteralHelp):
    """The command; words without a flag before them are answered with what to type."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        given, words, _ = self.make_parser(ctx).parse_args(list(args))
        if words and not given.get("help") and not ctx.resilient_parsing:
            ctx.fail(f"Got {' '.join(words)} without a flag; write: {_with_flags(ctx.command_path, args, words)}")
        return super().parse_args(ctx, args)


def _with_flags(program: str, arguments: Sequence[str], bare: Sequence[str]) -> str:
    """The command line with --gin_file or --gin_param before the words that came without a flag."""
    words, left = program.split(), list(bare)
    for argument in arguments:
        if left and argument == left[0]:
            words.append("--gin_param" if "=" in left.pop(0) else "--gin_file")
        words.append(argument)
    return command_line(words)


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)  # a shell completes `modlib`, not a file's name


@app.command(cls=LaunchCommand, context_settings=SETTINGS)
def launch(
    gin_file: Annotated[
        list[str],
        typer.Option(
            "--gin_file",
            help="Gin file, by name or path, e.g. quickstart.gin; repeatable, later wins.",
            autocompletion=complete_gin_file,
        ),
    ],
    gin_param: GinParams = None,
    name: Annotated[
        str | None, typer.Option(help="The run's identity: its folder. Default: <file>-<hash of the resolved config>.")
    ] = None,
    runs_dir: RunsDir = RUNS,
    resume: Annotated[
        Literal["auto", "never", "must"], typer.Option(help="auto: continue the run if it exists.")
    ] = "auto",
    branch_from: Annotated[
        str | None,
        typer.Option(
            "--branch_from",
            metavar="RUN",
            help="Begin --name with a checkpoint of this run, its data position and its schedule.",
            autocompletion=complete_run,
        ),
    ] = None,
    step: Annotated[
        int | None, typer.Option(help="With --branch_from: of the checkpoint. Default: the newest that serves.")
    ] = None,
    executor: Annotated[
        Literal["local", "slurm"] | None,
        typer.Option(help="local: this machine; slurm: a job on the cluster. Default: the config's launch.executor."),
    ] = None,
    chain: Annotated[
        int, typer.Option(min=1, help="Jobs that continue each other, for clusters that do not requeue.")
    ] = 1,
    follow: Annotated[
        bool, typer.Option("--follow", help="After submitting, show the log until the run ends.")
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry_run", help="Check and build for the target world size, print the plan, write nothing."),
    ] = False,
    write_script: Annotated[
        Path | None,
        typer.Option("--write_script", help="With --dry_run: write a script for sbatch that needs no submitit here."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="With --dry_run: the plan as JSON on stdout.")] = False,
    sweep: Annotated[
        list[str] | None,
        typer.Option(
            "--sweep",
            help='An axis, "LR=[1e-4,3e-4]" or "LR=loguniform(1e-5,1e-2)", or a file of them; repeatable for a grid.',
        ),
    ] = None,
    sweep_samples: Annotated[
        int | None, typer.Option("--sweep_samples", help="Random points, for each cell of the grid.")
    ] = None,
    sweep_seed: Annotated[int, typer.Option("--sweep_seed", help="Of the random points.")] = 0,
) -> None:
    """Train the experiment that the gin files describe, here or on a cluster; the same command continues it."""
    with reported("training had not started; nothing was changed"), ExitStack() as left:
        for flag, given in (("--json", as_json), ("--write_script", write_script)):
            if given and not dry_run:
                raise typer.BadParameter(f"{flag} goes with --dry_run")
        for flag, given in (("--chain", chain > 1), ("--follow", follow), ("--write_script", write_script)):
            if given and sweep:
                raise typer.BadParameter(f"{flag} does not go with --sweep")
        if branch_from is not None and (name is None or sweep):
            raise typer.BadParameter("--branch_from goes with --name, the new run's, and not with --sweep")
        if step is not None and branch_from is None:
            raise typer.BadParameter("--step goes with --branch_from")
        if sweep_samples is not None and not sweep:
            raise typer.BadParameter("--sweep_samples goes with --sweep")
        if sweep:
            from modlib.cli.start.sweep import run_sweep

            code = run_sweep(
                sweep,
                gin_file,
                gin_param or [],
                runs_dir=runs_dir,
                name=name,
                num_samples=sweep_samples,
                seed=sweep_seed,
                resume=resume,
                executor=executor,
                dry_run=dry_run,
                as_json=as_json,
            )
            raise typer.Exit(code)
        from modlib.config import load

        config = load(gin_file, gin_param or [])
        from modlib.cli.start import longer, planning

        if (folder := planning.other_folder(config, name)) is not None:
            runs_dir, write_script = runs_dir.absolute(), write_script and write_script.absolute()
            left.enter_context(chdir(folder))
        source = longer.source_of(branch_from, runs_dir) if branch_from is not None else None
        config, place, name = planning.planned(config, "slurm" if write_script else executor, runs_dir, name, source)
        change = longer.change_of(config, RunFolder(runs_dir / name), source, step)
        if dry_run:
            from modlib.cli.start.dry_run import show_plan

            show_plan(config, place, runs_dir, name, as_json=as_json, write_script=write_script)
            if change is not None:
                print(change.text(), file=sys.stderr)
            return
        if isinstance(place, planning.Local):
            for flag, given in (("--chain", chain > 1), ("--follow", follow)):
                if given:
                    raise typer.BadParameter(f"{flag} goes with --executor slurm")
            from modlib.cli.start.local import train_here

            code = train_here(config, place, runs_dir=runs_dir, name=name, resume=resume, change=change)
        else:
            from modlib.cli.start.slurm import submit_run

            code = submit_run(
                config,
                place,
                runs_dir=runs_dir,
                name=name,
                resume=resume,
                chain=chain,
                follow=follow,
                change=change,
            )
    raise typer.Exit(code)


def main() -> None:
    """Entry point of launch.py."""
    secure_streams()
    if "MODLIB_SWEEP_PIPE" in os.environ:
        from modlib.cli.start.sweep import stop_with_sweep

        stop_with_sweep()
    with nullcontext() if installed() else answered():
        app()
