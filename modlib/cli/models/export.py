"""`modlib export`: a run's model as a folder that transformers reads."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Annotated

import typer

from modlib.cli.options import RUNS, RunArgument, RunsDir, Step
from modlib.cli.report import reported
from modlib.cli.watch.runs import find_run
from modlib.runtime.errors import ConfigError
from modlib.runtime.run_folder import RunFolder


def command(
    run: RunArgument,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to make; must be new or empty.")],
    step: Step = None,
    dtype: Annotated[
        str | None,
        typer.Option("--dtype", help="float32, bfloat16 or float16; as the base folder's weights, or the run's."),
    ] = None,
    plain: Annotated[
        bool, typer.Option("--plain", help="Write the weights alone, under the model's own names, for any model.")
    ] = False,
    checkpoint: Annotated[int | None, typer.Option("--checkpoint", hidden=True)] = None,
    runs_dir: RunsDir = RUNS,
) -> None:
    """Write a run's model as a HuggingFace folder: config, weights in safetensors, and the tokenizer.

    LoRA adapters are merged into the weights that are written. What the folder of a pretrained base says beside its
    weights is kept: tokenizer and its settings, chat template, generation settings, dtype, README, licence. A model of
    your own is written as model.safetensors with its state. Nothing in the run folder changes.
    """
    with reported(), contextlib.redirect_stdout(sys.stderr):  # a user's module may print while it is imported
        from modlib.cli.models.exported_run import export_run
        from modlib.launching.working_directory import in_working_directory
        from modlib.models.exportable import is_for_transformers
        from modlib.models.huggingface_export import require_free

        found = find_run(run, runs_dir)
        require_free(out)
        absolute, target = RunFolder(found.path.absolute()), out.absolute()
        with in_working_directory(absolute):  # which the paths of its data and of its base lead from
            trained = export_run(absolute, _step(step, checkpoint), target, dtype=dtype, plain=plain)
        alone = plain or not is_for_transformers(trained.model)
    what = f"{out}: {type(trained.model).__name__} of step {trained.loaded.step}"
    print(f"{what}, its state in model.safetensors" if alone else f"{what}, read by transformers' from_pretrained")


def _step(step: int | None, checkpoint: int | None) -> int | None:
    """The step of the checkpoint, which had another flag before version 0.2."""
    if checkpoint is None:
        return step
    if step not in (None, checkpoint):
        raise ConfigError(
            f"--checkpoint ({checkpoint}) must be --step ({step}), whose old name it is; give --step alone"
        )
    print(f"warning: --checkpoint is called --step since 0.2; write --step {checkpoint}", file=sys.stderr)
    return checkpoint
