"""When to save, and what to keep: the component a gin file configures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from modlib.components import component
from modlib.runtime.errors import ConfigError

if TYPE_CHECKING:
    from modlib.checkpointing.writing import SavedCheckpoint


@component("checkpoint_saving", "default", not_science=("every", "keep_last", "keep_every"))
class CheckpointSaving:
    """Saves every so many steps and keeps the newest checkpoints.

    Args:
        every: Optimizer steps between two saves. None: never on a step (training still saves when it ends).
        keep_last: How many of the newest complete checkpoints to keep; -1 keeps all.
        keep_every: Checkpoints of steps that this divides are kept for good. None: no such steps.
    """

    def __init__(self, every: int | None = None, keep_last: int = 2, keep_every: int | None = None) -> None:
        problems = [
            f"{name} ({value}) must be at least 1; set it to 1 or more, or to None"
            for name, value in (("every", every), ("keep_every", keep_every))
            if value is not None and value < 1
        ]
        if keep_last != -1 and keep_last < 1:
            problems.append(
                f"keep_last ({keep_last}) must be at least 1 (or -1 to keep all); set it to 2 or more to be safe"
            )
        if problems:
            raise ConfigError(problems)
        self.every = every
        self.keep_last = keep_last
        self.keep_every = keep_every

    def due(self, step: int) -> bool:
        """Whether a checkpoint is saved after this optimizer step."""
        return self.every is not None and step > 0 and step % self.every == 0

    def save(self, run_checkpoints: Path | str, **state: Any) -> SavedCheckpoint:
        """Save a checkpoint, then remove those that are no longer kept; arguments as of `checkpointing.save`."""
        from modlib.checkpointing.coordination import Ranks
        from modlib.checkpointing.writing import save

        saved = save(run_checkpoints, **state)
        if Ranks(state.get("group")).first:
            self.prune(run_checkpoints)
        return saved

    def prune(self, run_checkpoints: Path | str) -> list[Path]:
        """Remove complete checkpoints beyond `keep_last`, oldest first, and leftovers; one process calls it.

        What counts is what is on the disk, so it works after a restart. Damaged checkpoints neither count nor are
        removed, and the newest complete one always stays.

        Returns:
            The paths removed.
        """
        from modlib.checkpointing.commit import clean, delete
        from modlib.checkpointing.loading import complete_checkpoints

        folder = Path(run_checkpoints)
        clean(folder)
        if self.keep_last == -1:
            return []
        surplus = list(complete_checkpoints(folder))[self.keep_last :]
        removed = []
        for checkpoint in reversed(surplus):
            if self.keep_every is None or checkpoint.step % self.keep_every != 0:
                delete(checkpoint.path, checkpoint.step)
                removed.append(checkpoint.path)
        return removed
