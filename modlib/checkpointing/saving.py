"""When to save, how, and what to keep: the component a gin file configures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modlib.components import component
from modlib.runtime.errors import ConfigError

if TYPE_CHECKING:
    from modlib.checkpointing.writing import SavedCheckpoint


@component("checkpoint_saving_execution", "fsdp", not_science=("threads_per_processor",))
class FSDPCheckpointSaving:
    """Every rank writes its own shards, all hashed; the checkpoint exists once it is complete and verified.

    Args:
        threads_per_processor: Writing threads for each processor of a rank, at least 1; most of them wait for the disk.
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

    Each strategy sees what those before it do not keep: `[@SaveEveryKSteps, @SaveKMostRecent]` keeps every k-th
    checkpoint for good and the newest few of the rest.

    Args:
        strategies: When to save and what to keep, at least one.
        execution: How a checkpoint is written.
    """

    def __init__(
        self, strategies: Sequence[Callable[..., Any]], execution: Callable[..., Any] = FSDPCheckpointSaving
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
            self.prune(run_checkpoints)
        return saved

    def prune(self, run_checkpoints: Path | str) -> list[Path]:
        """Remove complete checkpoints that no strategy keeps, oldest first, and leftovers; one process calls it.

        What counts is what is on the disk, so it works after a restart. Damaged checkpoints neither count nor are
        removed, and the newest complete one always stays.

        Returns:
            The paths removed.
        """
        from modlib.checkpointing.commit import clean, delete
        from modlib.checkpointing.loading import complete_checkpoints

        folder = Path(run_checkpoints)
        clean(folder)
        complete = list(complete_checkpoints(folder))
        surplus = [checkpoint.step for checkpoint in complete]
        for strategy in self.strategies:
            kept = strategy.kept(surplus)
            surplus = [step for step in surplus if step not in kept]
        removed = []
        for checkpoint in reversed(complete[1:]):
            if checkpoint.step in surplus:
                delete(checkpoint.path, checkpoint.step)
                removed.append(checkpoint.path)
        return removed
