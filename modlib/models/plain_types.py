"""Which class a module is of, without what sharding, compiling and adapters made of it."""

from __future__ import annotations

from typing import Any, cast

from torch import nn

from modlib.nn.lora_layers import LoRALayer


def plain_type(module: nn.Module) -> type[nn.Module]:
    """The class that the module was built from: FSDP2 and LoRA put subclasses in its place."""
    for kind in type(module).__mro__:
        made = issubclass(kind, LoRALayer) or any(base.__name__ == "FSDPModule" for base in kind.__mro__)
        if not made:
            return cast(type[nn.Module], kind)
    raise AssertionError(type(module))


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside torch.compile's and DistributedDataParallel's wrappers."""
    wrapped: Any = model
    while (inner := getattr(wrapped, "_orig_mod", None) or _replicated(wrapped)) is not None:
        wrapped = inner
    return cast(nn.Module, wrapped)


def _replicated(model: Any) -> Any:
    return model.module if type(model).__name__ == "DistributedDataParallel" else None
