"""Which parameters does code read, whoever runs it? Heard from torch's functions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn
from torch.overrides import TorchFunctionMode

# what asks a tensor for what it is, not for its values
_NO_READS = frozenset(
    {
        "dtype",
        "device",
        "is_floating_point",
        "is_meta",
        "requires_grad",
        "shape",
        "size",
        "ndim",
        "dim",
        "numel",
        "grad",
    }
)


class WeightReads(TorchFunctionMode):
    """Tells of every parameter that a function of torch is called with."""

    def __init__(self, tell: Callable[[nn.Parameter], None]) -> None:
        super().__init__()
        self.tell = tell

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        asked = func.__self__.__name__ if func.__name__ == "__get__" else func.__name__
        waiting: list[Any] = [] if asked in _NO_READS else [*args, *(kwargs or {}).values()]
        while waiting:
            value = waiting.pop()
            if isinstance(value, nn.Parameter):
                self.tell(value)
            elif isinstance(value, list | tuple):
                waiting += value
        return func(*args, **(kwargs or {}))
