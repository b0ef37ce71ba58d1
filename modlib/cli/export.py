"""`modlib export`: a run's model as a folder that transformers reads."""

from __future__ import annotations

import contextlib
import logging
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from modlib.cli.report import reported
from modlib.cli.trained_run import TrainedRun, load_run, tokenizer_of
from modlib.runtime.errors import ConfigError, DataError

logger = logging.getLogger("modlib")


def command(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The run's folder, or its name in runs/.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to make; must be new or empty.")],
    checkpoint: Annotated[
        int | None, typer.Option("--checkpoint", help="Step of the checkpoint. Default: the newest undamaged one.")
    ] = None,
) -> None:
    """Write a run's model as a HuggingFace folder: config, weights in safetensors, and the tokenizer.

    LoRA adapters are merged into the weights that are written. Nothing in the run folder changes.
    """
    with reported(), contextlib.redirect_stdout(sys.stderr):  # a user's module may print while it is imported
        from modlib.models.huggingface_export import export_huggingface, require_free

        require_free(out)
        trained = load_run(run, checkpoint, "--checkpoint")
        export_huggingface(trained.model, out, *_tokenizer(trained))
    print(f"{out}: {type(trained.model).__name__} of step {trained.loaded.step}, read by transformers' from_pretrained")


def _tokenizer(trained: TrainedRun) -> tuple[Any, str | None]:
    """The training data's, of the tokenizers library, and the text of the token that ends a document.

    None and None, with a warning, where it is gone or of another kind.
    """
    import tokenizers

    from modlib.data.tokenizer import Tokenizer

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
