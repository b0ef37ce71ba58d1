"""Agreement between ranks while saving and loading, on a group of its own.

Training's collectives must never interleave with a checkpoint's: on gloo that aborts the process. So checkpoints use
their own gloo group, on which only small CPU tensors travel.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
import torch.distributed as dist

from modlib.checkpointing.manifest import DamagedCheckpointError
from modlib.runtime.errors import CheckpointError

T = TypeVar("T")
_GROUPS: dict[dist.ProcessGroup, dist.ProcessGroup] = {}


class Ranks:
    """The ranks that save or load together; without a process group, this process alone.

    Args:
        group: A gloo group of all ranks. None: one is made for all ranks the first time, by all ranks, and kept.
    """

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        initialised = dist.is_available() and dist.is_initialized()
        if initialised and group is None and dist.get_world_size() > 1:
            world = dist.group.WORLD
            assert world is not None
            if world not in _GROUPS:
                _GROUPS.clear()  # of a world that has ended
                _GROUPS[world] = dist.new_group(backend="gloo")
            group = _GROUPS[world]
        self.size = dist.get_world_size(group) if initialised and group is not None else 1
        self.rank = dist.get_rank(group) if self.size > 1 else 0
        self.group = group if self.size > 1 else None

    @property
    def first(self) -> bool:
        """Whether this is the rank that decides."""
        return self.rank == 0

    def broadcast(self, data: bytes, source: int = 0) -> bytes:
        """One rank's bytes, on every rank."""
        if self.group is None:
            return data
        origin = dist.get_global_rank(self.group, source)
        length = torch.tensor([len(data)], dtype=torch.int64)
        dist.broadcast(length, origin, group=self.group)
        payload = torch.empty(int(length), dtype=torch.uint8)
        if self.rank == source and data:
            payload = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        if len(payload):
            dist.broadcast(payload, origin, group=self.group)
        return payload.numpy().tobytes()

    def sum(self, value: int) -> int:
        """The sum of one number over ranks."""
        if self.group is None:
            return value
        total = torch.tensor([value], dtype=torch.int64)
        dist.all_reduce(total, group=self.group)
        return int(total)

    def agree(self, function: Callable[[], T]) -> T:
        """Call a function on every rank; an error of one rank is raised on all.

        Raises:
            CheckpointError: See `raise_first`.
        """
        error: Exception | None = None
        result: list[T] = []
        try:
            result.append(function())
        except Exception as caught:
            error = caught
        self.raise_first(error)
        return result[0]

    def raise_first(self, error: Exception | None) -> None:
        """Raise the same error on every rank if any rank has one: the lowest rank's.

        Raises:
            CheckpointError: Another rank failed; DamagedCheckpointError if that is what it found.
        """
        if self.group is None:
            if error is not None:
                raise error
            return
        lowest = torch.tensor([self.rank if error is not None else self.size], dtype=torch.int64)
        dist.all_reduce(lowest, op=dist.ReduceOp.MIN, group=self.group)
        failed = int(lowest)
        if failed == self.size:
            return
        kind = DamagedCheckpointError if isinstance(error, DamagedCheckpointError) else CheckpointError
        text = str(error) if isinstance(error, CheckpointError) else f"{type(error).__name__}: {error}"
        message = self.broadcast(f"{kind.__name__}\n{text}".encode(), source=failed).decode()
        if error is not None and self.rank == failed:
            raise error
        name, _, text = message.partition("\n")
        kind = DamagedCheckpointError if name == DamagedCheckpointError.__name__ else CheckpointError
        raise kind(f"rank {failed}: {text}") from error
