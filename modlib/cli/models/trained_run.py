"""A run that was trained, back in memory: its model with the weights of a checkpoint, and its tokenizer."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from modlib.runtime.errors import CheckpointError, DataError, RunFolderError
from modlib.runtime.run_folder import RunFolder

if TYPE_CHECKING:
    from modlib.checkpointing.loading import LoadedState
    from modlib.config import Config
    from modlib.data.text.tokenizer import TextTokenizer

logger = logging.getLogger("modlib")


@dataclass(frozen=True)
class TrainedRun:
    """What a run folder says about a model.

    Args:
        config: The run's.
        experiment: The settings.
        model: In memory, with the checkpoint's weights.
        loaded: Which checkpoint it was.
    """

    config: Config
    experiment: Any
    model: Any
    loaded: LoadedState


def load_run(run: RunFolder | Path | str, step: int | None = None) -> TrainedRun:
    """The model of a run with the weights of a checkpoint.

    Relative paths of its configuration lead from where it was trained, wherever this process is. Nothing in the run
    folder changes, so the run may be training meanwhile.

    Args:
        run: Its folder, or the path of it.
        step: Of the checkpoint; None takes the newest one that is undamaged.

    Raises:
        RunFolderError: The folder has no configuration.
        CheckpointError: It has no checkpoint, not this one, or one that does not fit its config.
    """
    import torch

    from modlib.launching.working_directory import in_working_directory
    from modlib.models.weights import initialize

    run, config, experiment, model = planned_run(run, step)
    model.to_empty(device="cuda" if torch.cuda.is_available() else "cpu")
    if getattr(model, "adapter_only_checkpoints", False):  # the rest comes from where training took it
        with in_working_directory(RunFolder(run.path.absolute())):
            initialize(model, experiment.initialization() if experiment.initialization else None, experiment.seed)
    loaded = _restore(run, model, step)
    return TrainedRun(config, experiment, model, loaded)


class PlannedRun(NamedTuple):
    """What a run folder says before any weight is read; the model is on meta."""

    folder: RunFolder
    config: Config
    experiment: Any
    model: Any


def planned_run(run: RunFolder | Path | str, step: int | None = None) -> PlannedRun:
    """The run's configuration, settings, and model on meta; arguments and errors as of load_run."""
    from modlib.checkpointing.names import step_folders

    run = run if isinstance(run, RunFolder) else RunFolder(run)
    absolute = RunFolder(run.path.absolute())
    if not run.config_path.is_file():
        raise RunFolderError(f"run ({run.path}) must have a config.gin to load its model; there is none")
    steps = sorted(found for found, _ in step_folders(run.checkpoints_path))
    if not steps:
        raise CheckpointError(
            f"run ({run.path}) must have a checkpoint, and {run.checkpoints_path} has none; train it up to its first "
            "one, which CHECKPOINT_EVERY sets"
        )
    if step is not None and step not in steps:
        raise CheckpointError(
            f"--step ({step}) must be a checkpoint of {run.path}, which has {', '.join(map(str, steps))}"
        )

    import torch

    from modlib.config import load
    from modlib.launching.working_directory import in_working_directory
    from modlib.runtime.logs import start_logging
    from modlib.training.building import build, build_experiment

    start_logging(level=logging.WARNING)
    config = load([run.config_path])
    experiment = build_experiment(config)
    with in_working_directory(absolute), torch.device("meta"):
        model = build(config, experiment.model)
    return PlannedRun(run, config, experiment, model)


def _restore(run: RunFolder, model: Any, step: int | None) -> LoadedState:
    """Load the weights of one checkpoint, or of the newest that is what was saved."""
    from modlib.checkpointing.loading import complete_checkpoints, load
    from modlib.checkpointing.manifest import DamagedCheckpointError
    from modlib.checkpointing.names import step_name

    if step is not None:
        return load(run.checkpoints_path / step_name(step), model=model)
    for checkpoint in complete_checkpoints(run.checkpoints_path):
        try:
            return load(checkpoint, model=model)
        except DamagedCheckpointError as error:
            logger.warning("checkpoint %s is damaged and skipped: %s", checkpoint.path.name, error)
    raise CheckpointError(f"checkpoints in {run.checkpoints_path} must have at least one that is undamaged")


def tokenizer_of(trained: TrainedRun, dataset: Any = None) -> tuple[TextTokenizer, int | None]:
    """The tokenizer that made the training data, and the token that ends a document there, if any does.

    Args:
        trained: The run.
        dataset: Its training data; None builds it.

    Raises:
        DataError: The training data or its tokenizer is gone.
    """
    from modlib.data.datasets.dataset import tokenizer_of as made_by
    from modlib.data.text.boundary_tokens import chosen_end
    from modlib.launching.working_directory import in_working_directory
    from modlib.training.building import build

    loaded, run = trained.loaded, RunFolder(trained.loaded.path.absolute().parents[1])  # of the checkpoints' folder
    with in_working_directory(run):
        dataset = build(trained.config, trained.experiment.dataset) if dataset is None else dataset
        tokenizer = made_by(dataset)
    name = getattr(dataset, "name", None)
    if tokenizer is None:
        raise DataError(
            f"training data ({name or type(dataset).__name__}) must have its tokenizer beside it, as tokenizer.json "
            "or NAME.tokenizer.model, with the fingerprint in the data's header; put it there"
        )
    if loaded.extra.get("data_fingerprint") not in (None, getattr(dataset, "fingerprint", None)):
        logger.warning("the training data (%s) changed since step %d: is its tokenizer the same?", name, loaded.step)
    return tokenizer, chosen_end(tokenizer)
