"""`modlib track`: give a tracker what it has not of a run, from metrics.jsonl."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from modlib.cli.options import RUNS, RunArgument, RunsDir
from modlib.cli.report import reported
from modlib.cli.watch.runs import find_run
from modlib.runtime.logs import start_logging


def command(
    run: RunArgument,
    to: Annotated[Literal["wandb", "tensorboard"], typer.Option("--to", help="The tracker.")],
    again: Annotated[bool, typer.Option("--again", help="wandb: send everything, also what W&B has.")] = False,
    runs_dir: RunsDir = RUNS,
) -> None:
    """Send W&B the rows that it has not, or write TensorBoard's files anew; nobody may train the run meanwhile."""
    with reported("what was sent is marked; the same command sends the rest"):
        found = find_run(run, runs_dir)
        start_logging()
        from modlib.tracking.rebuilding import rebuild_tensorboard, send_to_wandb

        if to == "tensorboard":
            rows = rebuild_tensorboard(found)
            print(f"{found.tensorboard_path} is written anew, from {rows} lines of {found.metrics_path}")
        else:
            counts = send_to_wandb(found, again=again)
            print(f"W&B has all {counts.rows} rows of {found.name}; --again sends them once more")
            offline = sorted((found.path / "wandb").glob("offline-run-*"))
            if offline:
                print(f"what is offline is uploaded with: wandb sync {' '.join(map(str, offline))}")
