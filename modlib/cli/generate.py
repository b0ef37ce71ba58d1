"""`modlib generate`: text from a run's checkpoint, on stdout and alone there."""

from __future__ import annotations

import contextlib
import difflib
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from modlib.cli.report import reported
from modlib.runtime.errors import CheckpointError, ConfigError, DataError, RunFolderError
from modlib.runtime.run_folder import RunFolder

if TYPE_CHECKING:
    from modlib.checkpointing import LoadedState
    from modlib.config import Config

logger = logging.getLogger("modlib")


def command(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The run's folder, as in runs/quickstart-1a2b3c4d.")],
    prompt: Annotated[str, typer.Option("--prompt", help="Text to continue; empty starts a document.")] = "",
    max_new_tokens: Annotated[int, typer.Option("--max_new_tokens", help="Most tokens to add.")] = 128,
    temperature: Annotated[
        float, typer.Option("--temperature", help="0 takes the most likely token each time; 1 the model's own odds.")
    ] = 0.8,
    top_k: Annotated[
        int, typer.Option("--top_k", help="Sample among this many most likely tokens; 0: among all.")
    ] = 50,
    top_p: Annotated[
        float, typer.Option("--top_p", help="Sample among the most likely tokens that have this probability together.")
    ] = 1.0,
    seed: Annotated[int, typer.Option("--seed", help="Of the first sample; the next one's is one higher.")] = 0,
    num_samples: Annotated[int, typer.Option("--num_samples", help="Texts to write, a blank line between two.")] = 1,
    step: Annotated[
        int | None, typer.Option("--step", help="Step of the checkpoint. Default: the newest undamaged one.")
    ] = None,
) -> None:
    """Let a run's model continue a prompt. The text goes to stdout, everything else to stderr."""
    with reported():
        _check(max_new_tokens, temperature, top_k, top_p, seed, num_samples)
        with contextlib.redirect_stdout(sys.stderr):  # a user's module may print while it is imported
            model, tokenizer = load_run(run, step)
        from modlib.inference.generation import sample_text

        for number in range(num_samples):
            if num_samples > 1:
                print(f"sample {number + 1} of {num_samples}, seed {seed + number}", file=sys.stderr, flush=True)
            text = sample_text(
                model,
                tokenizer,
                prompt,
                max_new_tokens=max_new_tokens,
                temperature=temperature,
                top_k=top_k or None,
                top_p=top_p,
                seed=seed + number,
            )
            print(("\n" if number else "") + text, flush=True)


def _check(max_new_tokens: int, temperature: float, top_k: int, top_p: float, seed: int, num_samples: int) -> None:
    """Refuse wrong values before anything slow is imported."""
    problems = []
    if max_new_tokens < 0:
        problems.append(f"--max_new_tokens ({max_new_tokens}) must be at least 0")
    if not temperature >= 0:
        problems.append(f"--temperature ({temperature}) must be at least 0; 0 is greedy")
    if top_k < 0:
        problems.append(f"--top_k ({top_k}) must be at least 0; 0 samples among all tokens")
    if not 0 < top_p <= 1:
        problems.append(f"--top_p ({top_p}) must be in (0, 1]; 1 samples among all tokens")
    if num_samples < 1:
        problems.append(f"--num_samples ({num_samples}) must be at least 1")
    if not 0 <= seed < 2**63 - max(num_samples, 1):
        problems.append(f"--seed ({seed}) must be in [0, 2^63 - num_samples)")
    if problems:
        raise ConfigError(problems)


def load_run(path: Path, step: int | None = None) -> tuple[Any, Any]:
    """The model of a run with the weights of a checkpoint, and the tokenizer of its training data.

    Nothing in the run folder changes, so the run may be training meanwhile.

    Args:
        path: The run folder.
        step: Of the checkpoint; None takes the newest one that is undamaged.

    Raises:
        RunFolderError: There is no such run.
        CheckpointError: It has no checkpoint, not this one, or one that does not fit its config.
        DataError: The training data or its tokenizer is gone.
    """
    from modlib.checkpointing.names import step_folders

    run = RunFolder(path)
    if not run.config_path.is_file():
        raise RunFolderError(f"run ({path}) must be a run folder, with a config.gin in it; {_hint(path)}")
    steps = sorted(found for found, _ in step_folders(run.checkpoints_path))
    if not steps:
        raise CheckpointError(
            f"run ({path}) must have a checkpoint, and {run.checkpoints_path} has none; train it up to its first one, "
            "which CheckpointSaving.every sets"
        )
    if step is not None and step not in steps:
        raise CheckpointError(f"--step ({step}) must be a checkpoint of {path}, which has {', '.join(map(str, steps))}")

    import gin
    import torch

    from modlib.config import load
    from modlib.runtime.logs import start_logging
    from modlib.training.plan import build

    start_logging(level=logging.WARNING)
    config = load([run.config_path])
    config.activate()
    experiment = build(config, gin.get_configurable("train"))
    with torch.device("meta"):
        model = build(config, experiment.model)
    model.to_empty(device="cuda" if torch.cuda.is_available() else "cpu")
    loaded = _restore(run, model, step)
    return model, _tokenizer(config, experiment, loaded)


def _hint(path: Path) -> str:
    """Runs with a name like the one asked for."""
    if path.exists():
        return f"there is no {path / 'config.gin'}"
    runs = {str(found.parent) for folder in (path.parent, Path("runs")) for found in folder.glob("*/config.gin")}
    close = difflib.get_close_matches(str(path), runs, n=1) or [run for run in runs if Path(run).name == path.name]
    return f"did you mean {close[0]}?" if close else f"there is no folder {path.absolute()}"


def _restore(run: RunFolder, model: Any, step: int | None) -> LoadedState:
    """Load the weights of one checkpoint, or of the newest that is what was saved."""
    from modlib.checkpointing import DamagedCheckpointError, load
    from modlib.checkpointing.loading import complete_checkpoints
    from modlib.checkpointing.names import step_name

    if step is not None:
        return load(run.checkpoints_path / step_name(step), model=model)
    for checkpoint in complete_checkpoints(run.checkpoints_path):
        try:
            return load(checkpoint, model=model)
        except DamagedCheckpointError as error:
            logger.warning("checkpoint %s is damaged and skipped: %s", checkpoint.path.name, error)
    raise CheckpointError(f"checkpoints in {run.checkpoints_path} must have at least one that is undamaged")


def _tokenizer(config: Config, experiment: Any, loaded: LoadedState) -> Any:
    """The tokenizer that made the training data."""
    from tokenizers import Tokenizer

    from modlib.data.corpus import tokenizer_path
    from modlib.training.plan import build

    dataset = build(config, experiment.dataset)
    name = getattr(dataset, "name", None)
    path = None if name is None else tokenizer_path(name)
    if path is None:
        raise DataError(
            f"training data ({name or type(dataset).__name__}) must have its tokenizer beside it, as tokenizer.json "
            "with the fingerprint in the data's header; put it there"
        )
    if loaded.extra.get("data_fingerprint") not in (None, getattr(dataset, "fingerprint", None)):
        logger.warning("the training data (%s) changed since step %d: is its tokenizer the same?", name, loaded.step)
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer
