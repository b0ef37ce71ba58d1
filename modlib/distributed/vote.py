"""A yes or no that all ranks agree on, without stopping for it."""

from __future__ import annotations

import torch
import torch.distributed as dist


class Vote:
    """Whether any rank said yes, agreed one call later.

    Each rank casts its vote at the start of a step; the reduction runs beside the step's computation on a CPU group,
    and is read at the step's end, when it is long done. So no rank waits, and no device is synchronised.

    Args:
        group: A gloo group of all ranks; None in a world of one.
    """

    def __init__(self, group: dist.ProcessGroup | None) -> None:
        self.group = group
        self.ballot = torch.zeros(1, dtype=torch.int32)
        self.pending: dist.Work | None = None

    def cast(self, yes: bool) -> None:
        """Give this rank's vote for the current step."""
        self.ballot.fill_(int(yes))
        if self.group is not None:
            self.pending = dist.all_reduce(self.ballot, op=dist.ReduceOp.MAX, group=self.group, async_op=True)

    def passed(self) -> bool:
        """Whether any rank voted yes in the last cast."""
        if self.pending is not None:
            self.pending.wait()
            self.pending = None
        return bool(self.ballot.item())
