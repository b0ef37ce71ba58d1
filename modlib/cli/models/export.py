"""`modlib export`: a run's model as a folder that transformers reads."""

from __future__ import annotations

import contextlib
import logging
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from modlib.cli.models.trained_run import TrainedRun, load_run, tokenizer_of
from modlib.cli.options import RUNS, RunArgument, RunsDir, Step
from modlib.cli.report import reported
from modlib.cli.watch.runs import find_run
from modlib.runtime.errors import ConfigError, DataError

logger = logging.getLogger("modlib")


def command(
    run: RunArgument,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to make; must be new or empty.")],
    step: Step = None,
    checkpoint: Annotated[int | None, typer.Option("--checkpoint", hidden=True)] = None,
    runs_dir: RunsDir = RUNS,
) -> None:
    """Write a run's model as a HuggingFace folder: config, weights in safetensors, and the tokenizer.

    LoRA adapters are merged into the weights that are written. Nothing in the run folder changes.
    """
    with reported(), contextlib.redirect_stdout(sys.stderr):  # a user's module may print while it is imported
        from modlib.launching.working_directory import in_working_directory
        from modlib.models.huggingface_export import export_huggingface, require_free

        found = find_run(run, runs_dir)
        require_free(out)
        absolute = out.absolute()
        trained = load_run(found, _step(step, checkpoint))
        with in_working_directory(trained.run):  # which the paths of a base and of a tokenizer lead from
            export_huggingface(trained.model, absolute, *_tokenizer(trained))
    print(f"{out}: {type(trained.model).__name__} of step {trained.loaded.step}, read by transformers' from_pretrained")


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


def _tokenizer(trained: TrainedRun) -> tuple[Any, str | None]:
    """The training data's, of the tokenizers library, and the text of the token that ends a document.

    None and None, with a warning, where it is gone or of another kind.
    """
    import tokenizers

    from modlib.data.text.tokenizer import Tokenizer

    try:
        found, end = tokenizer_of(trained)
    except (DataError, ConfigError) as error:
        logger.warning("exported without a tokenizer: %s", error)
        return None, None
    if not isinstance(found, Tokenizer):
        logger.warning("exported without a tokenizer: %s is not one of the tokenizers library; copy it", found.path)
        return None, None
    tokenizer = tokenizers.Tokenizer.from_str(found.to_json())
    return tokenizer, None if end is None else tokenizer.id_to_token(end)
