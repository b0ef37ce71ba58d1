"""A run as an exported folder: its newest undamaged checkpoint, and what its training data says of the tokenizer."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modlib.cli.models.trained_run import TrainedRun, load_run, planned_run, tokenizer_of
from modlib.runtime.errors import CheckpointError, ConfigError, DataError
from modlib.runtime.run_folder import RunFolder

if TYPE_CHECKING:
    from modlib.checkpointing.loading import Checkpoint
    from modlib.models.exported_tokenizer import DataTokenizer
    from modlib.models.whole_weights import Weights

logger = logging.getLogger("modlib")


def export_run(run: RunFolder, step: int | None, out: Path, *, dtype: str | None, plain: bool) -> TrainedRun:
    """Write the folder, tensor by tensor from the checkpoint.

    Where checkpoints hold adapters alone, the frozen weights are read from the base folder likewise; the whole model is
    in memory only where they come from elsewhere, or transformers has to convert what the folder holds.

    Args:
        run: Its folder.
        step: Of the checkpoint; None takes the newest one that is undamaged.
        out: New or empty.
        dtype: As for `export_huggingface`, like plain.

    Raises:
        ModlibError: As `load_run` and `export_huggingface`.
    """
    from modlib.checkpointing.loading import LoadedState
    from modlib.checkpointing.manifest import DamagedCheckpointError
    from modlib.models.huggingface_export import export_huggingface

    planned = planned_run(run, step)
    for checkpoint in _checkpoints(run, step):
        _, config, experiment, model = planned
        loaded = LoadedState(checkpoint.step, checkpoint.extra, None, checkpoint.path, checkpoint.manifest.world_size)
        trained = TrainedRun(config, experiment, model, loaded)
        try:
            with _weights(checkpoint, model) as weights:
                if weights is None:
                    trained = load_run(run, step)
                tokenizer = _data_tokenizer(trained)
                export_huggingface(trained.model, out, tokenizer, weights=weights, dtype=dtype, plain=plain)
        except DamagedCheckpointError as error:
            if step is not None:
                raise
            logger.warning("checkpoint %s is damaged and skipped: %s", checkpoint.path.name, error)
            planned = planned_run(run, step)  # a model that was compared has memory
            continue
        return trained
    raise CheckpointError(f"checkpoints in {run.checkpoints_path} must have at least one that is undamaged")


@contextmanager
def _weights(checkpoint: Checkpoint, model: Any) -> Iterator[Weights | None]:
    """The weights of a checkpoint's model, one at a time; None where some come from elsewhere."""
    from modlib.checkpointing.single_tensors import CheckpointTensors
    from modlib.models.base_weights import over_base

    with CheckpointTensors(checkpoint, model) as tensors:
        if not getattr(model, "adapter_only_checkpoints", False):
            yield tensors
            return
        with over_base(model, tensors) as weights:
            yield weights


def _checkpoints(run: RunFolder, step: int | None) -> Iterator[Checkpoint]:
    from modlib.checkpointing.loading import complete_checkpoints, open_checkpoint
    from modlib.checkpointing.names import step_name

    if step is None:
        yield from complete_checkpoints(run.checkpoints_path)
    else:
        yield open_checkpoint(run.checkpoints_path / step_name(step))


def _data_tokenizer(trained: TrainedRun) -> DataTokenizer | None:
    """What the training data says; None, with a warning, where its tokenizer is gone."""
    from modlib.data.datasets.dataset import packed_files
    from modlib.data.packing.pack_record import packed_chat_template
    from modlib.data.text.boundary_tokens import begin_of, boundaries_of
    from modlib.data.text.tokenizer import Tokenizer
    from modlib.launching.working_directory import in_working_directory
    from modlib.models.exported_tokenizer import DataTokenizer
    from modlib.training.building import build

    run = RunFolder(trained.loaded.path.absolute().parents[1])  # of the checkpoints' folder
    try:
        with in_working_directory(run):
            dataset = build(trained.config, trained.experiment.dataset)
            found, end = tokenizer_of(trained, dataset)
            packed: Any = next(packed_files(dataset), None)
            template = None if packed is None else packed_chat_template(packed.path)
        begin = None if packed is None else begin_of(packed.header)
        boundaries = boundaries_of(end, begin, found)
    except (DataError, ConfigError) as error:
        logger.warning("exported without the training data's tokenizer: %s", error)
        return None
    text = found.to_json() if isinstance(found, Tokenizer) else None
    if text is None:
        logger.warning(
            "exported without the training data's tokenizer: %s is not one of the tokenizers library; copy it",
            found.path,
        )
    return DataTokenizer(text, found.fingerprint, boundaries, template)
