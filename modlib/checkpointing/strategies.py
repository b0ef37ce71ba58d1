"""Which steps get a checkpoint, and which checkpoints stay. A run combines as many as it likes."""

from __future__ import annotations

from collections.abc import Sequence

from modlib.components import component
from modlib.runtime.errors import ConfigError


@component("checkpoint_saving_strategy", "save_every_k_steps_checkpointing_strategy", not_science=("k",))
class SaveEveryKSteps:
    """Saves at every step that k divides, and keeps those checkpoints for good.

    Args:
        k: Optimizer steps, at least 1.

    Raises:
        ConfigError: k is below 1.
    """

    for_good = True

    def __init__(self, k: int) -> None:
        if k < 1:
            raise ConfigError(f"k ({k}) must be at least 1; to never save on a step leave this strategy out")
        self.k = k

    def due(self, step: int) -> bool:
        """Whether a checkpoint is saved after this optimizer step."""
        return step > 0 and step % self.k == 0

    def kept(self, steps: Sequence[int]) -> set[int]:
        """Those of the saved steps (newest first) that stay."""
        return {step for step in steps if step % self.k == 0}


@component("checkpoint_saving_strategy", "save_k_most_recent_checkpoints_strategy", not_science=("k", "every"))
class SaveKMostRecent:
    """Saves every so many steps, and keeps the newest k of the checkpoints that are not kept for good.

    Args:
        k: Checkpoints kept; -1 keeps all, 0 never saves on a step (training still saves when it ends).
        every: Optimizer steps between two saves, at least 1.

    Raises:
        ConfigError: A number out of range.
    """

    for_good = False

    def __init__(self, k: int = 2, *, every: int) -> None:
        problems = []
        if k < -1:
            problems.append(f"k ({k}) must be at least 0, or -1 to keep all; set it to 2 or more to be safe")
        if every < 1:
            problems.append(f"every ({every}) must be at least 1; set k = 0 to never save on a step")
        if problems:
            raise ConfigError(problems)
        self.k, self.every = k, every

    def due(self, step: int) -> bool:
        """Whether a checkpoint is saved after this optimizer step."""
        return self.k != 0 and step > 0 and step % self.every == 0

    def kept(self, steps: Sequence[int]) -> set[int]:
        """Those of the saved steps (newest first) that stay."""
        return set(steps if self.k == -1 else steps[: self.k])
