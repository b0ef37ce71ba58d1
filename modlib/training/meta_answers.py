"""A forward on the meta device goes on where it asks for values that are not there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class MetaAnswers(TorchDispatchMode):
    """Inside, a tensor on meta answers `item()` with False or 0, and `nonzero()` with no row.

    Models of transformers ask so whether a batch is packed, and experts who has tokens.

    Attributes:
        asked: How many questions were answered; after any, a layer that was not called may be called with real values.
    """

    def __init__(self) -> None:
        super().__init__()
        self.asked = 0

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if args and isinstance(args[0], torch.Tensor) and args[0].is_meta:
            self.asked += func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)
            if func is torch.ops.aten._local_scalar_dense.default:
                return False if args[0].dtype == torch.bool else 0
            if func is torch.ops.aten.nonzero.default:
                return args[0].new_empty((0, args[0].ndim), dtype=torch.int64)
        return func(*args, **(kwargs or {}))
