"""How one optimizer step is cut into ranks and micro-batches."""

from __future__ import annotations

from dataclasses import dataclass

from modlib.runtime.errors import ConfigError, DataError


@dataclass(frozen=True)
class BatchLayout:
    """How the global batch of one optimizer step is laid out.

    Args:
        micro_batch_size: Sequences per rank per forward.
        grad_accum_steps: Micro-batches per rank per optimizer step.
        world_size: Data-parallel ranks.
    """

    micro_batch_size: int
    grad_accum_steps: int = 1
    world_size: int = 1

    @property
    def global_batch_size(self) -> int:
        """Sequences per optimizer step over all ranks."""
        return self.micro_batch_size * self.grad_accum_steps * self.world_size

    def problems(self, rank: int) -> list[str]:
        """What is wrong with the layout, or with a rank in it; one text each."""
        names = ("world_size", "micro_batch_size", "grad_accum_steps")
        found = [
            f"{name} ({getattr(self, name)}) must be at least 1; set it to 1 or more"
            for name in names
            if getattr(self, name) < 1
        ]
        if not 0 <= rank < max(self.world_size, 1):
            found.append(
                f"rank ({rank}) must be at least 0 and below world_size ({self.world_size}); check the launcher"
            )
        return found

    def require_one_batch(self, num_samples: int) -> None:
        """Refuse data that does not fill a single step.

        Raises:
            DataError: There are fewer samples than one global batch.
        """
        if num_samples < self.global_batch_size:
            raise DataError(
                f"windows in the dataset ({num_samples}) must be at least one global batch ({self.global_batch_size} = "
                f"micro_batch_size {self.micro_batch_size} x grad_accum_steps {self.grad_accum_steps} x "
                f"{self.world_size} processes); use more text, a shorter SEQ_LEN or a smaller batch"
            )


def batch_layout(
    micro_batch_size: int, grad_accum_steps: int, global_batch_size: int | None, world_size: int
) -> BatchLayout:
    """Lay out one optimizer step over the ranks.

    Args:
        micro_batch_size: Sequences per rank per forward.
        grad_accum_steps: Used when global_batch_size is None.
        global_batch_size: Sequences per optimizer step over all ranks; determines grad_accum_steps.
        world_size: Data-parallel ranks.

    Raises:
        ConfigError: global_batch_size is not a multiple of micro_batch_size x world_size.
    """
    if global_batch_size is None:
        return BatchLayout(micro_batch_size, grad_accum_steps, world_size)
    per_forward = micro_batch_size * world_size
    if global_batch_size < per_forward or global_batch_size % per_forward:
        below = max(per_forward, global_batch_size // per_forward * per_forward)
        nearest = below if below >= global_batch_size else f"{below} or {below + per_forward}"
        raise ConfigError(
            f"global_batch_size ({global_batch_size}) must be a multiple of micro_batch_size ({micro_batch_size}) x "
            f"{world_size} processes = {per_forward}; nearest valid: {nearest}, "
            f"or micro_batch_size {_nearest_micro_batch(global_batch_size, micro_batch_size, world_size)}"
        )
    return BatchLayout(micro_batch_size, global_batch_size // per_forward, world_size)


def _nearest_micro_batch(global_batch_size: int, micro_batch_size: int, world_size: int) -> str:
    """The largest micro-batch, not above the wanted one, that divides the global batch on this many ranks."""
    if global_batch_size % world_size:
        return f"(none on {world_size} processes)"
    local = global_batch_size // world_size
    return str(max(size for size in range(1, min(micro_batch_size, local) + 1) if local % size == 0))
