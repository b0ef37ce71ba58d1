"""When to save, how, and what to keep: the component a gin file configures."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modlib.components import component
from modlib.runtime.errors import ConfigError

if TYPE_CHECKING:
    from modlib.checkpointing.writing import SavedCheckpoint

logger = logging.getLogger("modlib")


@component("checkpoint_saving_execution", "fsdp", not_science=("threads_per_processor",))
class FSDPCheckpointSaving:
    """Every rank writes its own shards, all hashed; the checkpoint exists once it is complete and verified.

    Args:
        threads_per_processor: Writing threads for each processor of a rank, at least 1; most of them wait for the disk.
            A rank has at least 2 and at most 16.

    Raises:
        ConfigError: A number out of range.
        CheckpointError: (When it saves) the checkpoint could not be written whole; older ones stay.
        NonFiniteError: (When it saves) a parameter or the optimizer's state holds NaN or Inf; older ones stay.
    """

    def __init__(self, threads_per_processor: int = 4) -> None:
        if threads_per_processor < 1:
            raise ConfigError(f"threads_per_processor ({threads_per_processor}) must be at least 1; set it to 4")
        self.threads_per_processor = threads_per_processor

    def save(self, run_checkpoints: Path | str, **state: Any) -> SavedCheckpoint:
        """Save a checkpoint; arguments as of `checkpointing.save`."""
        from modlib.checkpointing.writing import save

        return save(run_checkpoints, threads_per_processor=self.threads_per_processor, **state)


@component("checkpoint_saving", "default", not_science=("strategies", "execution"))
class CheckpointSaving:
    """Saves when any of its strategies asks for it, and removes what none of them keeps.

    What one strategy keeps for good does not count for the others: `[@SaveKMostRecent, @SaveEveryKSteps]`, in any
    order, keeps every k-th checkpoint and the newest few of the rest.

    Args:
        strategies: When to save and what to keep, at least one.
        execution: How a checkpoint is written.

    Raises:
        ConfigError: No strategy.
    """

    def __init__(
        self, strategies: Sequence[Callable[[], Any]], execution: Callable[[], Any] = FSDPCheckpointSaving
    ) -> None:
        if not strategies:
            raise ConfigError("strategies ([]) must name at least one; set e.g. [@SaveKMostRecent]")
        self.strategies = [strategy() for strategy in strategies]
        self.execution = execution()

    def due(self, step: int) -> bool:
        """Whether a checkpoint is saved after this optimizer step."""
        return any(strategy.due(step) for strategy in self.strategies)

    def save(self, run_checkpoints: Path | str, **state: Any) -> SavedCheckpoint:
        """Save a checkpoint, then remove those that are no longer kept; arguments as of `checkpointing.save`."""
        from modlib.checkpointing.coordination import Ranks

        saved: SavedCheckpoint = self.execution.save(run_checkpoints, **state)
        if Ranks(state.get("group")).first:
            try:
                self.prune(run_checkpoints, state["step"])
            except OSError as error:  # what was saved is saved
                logger.warning("checkpoints in %s that are no longer kept stay for now: %s", run_checkpoints, error)
        return saved

    def prune(self, run_checkpoints: Path | str, step: int) -> list[Path]:
        """Remove complete checkpoints that no strategy keeps, oldest first, and leftovers; one process calls it.

        What counts is what is on the disk, so it works after a restart. Damaged checkpoints neither count nor are
        removed; nor do those of later steps, which this run passed over when it resumed. That of `step` always stays.

        Args:
            run_checkpoints: The checkpoints folder of the run.
            step: Of the checkpoint that was just saved.

        Returns:
            The paths removed.
        """
        from modlib.checkpointing.commit import clean, delete
        from modlib.checkpointing.loading import complete_checkpoints

        folder = Path(run_checkpoints)
        clean(folder)
        complete = [checkpoint for checkpoint in complete_checkpoints(folder) if checkpoint.step <= step]
        surplus = [checkpoint.step for checkpoint in complete]
        for strategy in sorted(self.strategies, key=lambda strategy: not strategy.for_good):
            kept = strategy.kept(surplus)
            surplus = [each for each in surplus if each not in kept]
        removed = []
        for checkpoint in reversed(complete):
            if checkpoint.step in surplus and checkpoint.step != step:
                delete(checkpoint.path, checkpoint.step)
                removed.append(checkpoint.path)
        return removed
