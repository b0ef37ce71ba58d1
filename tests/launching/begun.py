"""A run folder with checkpoints, as training leaves it, for tests that do not train."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from modlib.checkpointing.writing import save
from modlib.config import Config
from modlib.launching.prepare import prepare
from modlib.runtime.run_folder import RunFolder


def begun(config: Config, runs_dir: Path, name: str, *steps: int, batch: int = 4, status: str = "running") -> RunFolder:
    """Prepare a run and save a small checkpoint at each step.

    Args:
        config: With its global batch.
        runs_dir: Where the folder goes.
        name: The run's.
        steps: With a checkpoint; none means step 12 alone.
        batch: The global batch that the checkpoints say.
        status: For run.json.
    """
    run = prepare(config, runs_dir=runs_dir, name=name)
    for step in steps or (12,):
        extra = {"step": step, "config_hash": config.identity, "global_batch_size": batch}
        save(run.checkpoints_path, step=step, model=nn.Linear(2, 2), extra=extra)
        run.update(step=step)
    run.update(status=status, world_size=1)
    return run
