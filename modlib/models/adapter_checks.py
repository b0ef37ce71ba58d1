"""Does every adapter take part in what the model computes? A layer whose weight is read without calling it has none."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from modlib.models.lora import adapters, tied_adapters
from modlib.nn.lora_layers import LoRALayer
from modlib.runtime.errors import ConfigError, ModlibError
from modlib.runtime.weight_reads import WeightReads

logger = logging.getLogger("modlib")


def _refusal(name: str) -> str:
    return f"{name} cannot be adapted: its weight is read without calling it, past the adapter; leave it out of targets"


def require_called_adapters(model: nn.Module, forward: Callable[[], bool]) -> None:
    """Refuse adapters of layers that the model does not call, or whose weight it reads past them.

    Args:
        model: With adapters, on meta.
        forward: One forward of it, which says whether it would go so with any values. Where it would not, or raises,
            as some models do on meta, only weights that were read until then count.

    Raises:
        ConfigError: Names the layers; or what the forward itself refuses.
    """
    layers = dict(adapters(model))
    tied = {name.rpartition(".")[0] for name in tied_adapters(model)}
    by_weight = {id(layer.weight): name for name, layer in layers.items() if name not in tied}
    running: list[str] = []
    called, read_past = set(), set()

    def tell(parameter: nn.Parameter) -> None:
        name = by_weight.get(id(parameter))
        if name is not None and name not in running:
            read_past.add(name)

    def hooks_of(name: str, layer: LoRALayer) -> tuple[Any, Any]:
        begins = layer.register_forward_pre_hook(lambda *_: running.append(name))
        ends = layer.register_forward_hook(lambda *_: called.add(running.pop()), always_call=True)
        return begins, ends

    hooks = [hook for name, layer in layers.items() for hook in hooks_of(name, layer)]
    is_certain = False
    try:
        with WeightReads(tell):
            is_certain = forward()
    except ModlibError:
        raise
    except Exception as error:
        logger.debug("the forward on meta ended in %r: the first step tells of adapters that are not used", error)
    finally:
        for hook in hooks:
            hook.remove()
    wrong = sorted(read_past | (set(layers) - called if is_certain else set()))
    if wrong:
        raise ConfigError([_refusal(name) for name in wrong])


def first_gradients(layers: Sequence[LoRALayer]) -> Tensor:
    """What this rank knows of the first gradients of some adapters: (2, layers), 1 if there, and 1 if not all zero.

    Asked of the part that begins at zero, which learns first: lora_B, and lora_A of an embedding.
    """
    grads = [(layer.lora_A if isinstance(layer, nn.Embedding) else layer.lora_B).grad for layer in layers]
    local = [grad.to_local() if isinstance(grad, DTensor) else grad for grad in grads]
    device = layers[0].lora_B.device
    none = torch.zeros((), dtype=torch.int64, device=device)
    there = torch.tensor([float(grad is not None) for grad in grads], device=device)
    return torch.stack([there, torch.stack([none if grad is None else grad.count_nonzero() for grad in local]).float()])


def require_gradients(names: Sequence[str], found: Tensor, has_loss: bool) -> bool:
    """Refuse adapters that a backward pass did not reach.

    Args:
        names: Of the layers.
        found: What `first_gradients` says, summed over ranks.
        has_loss: Whether the batch had a loss at all; one without targets has none.

    Returns:
        Whether that is proven; a batch without a loss says nothing.

    Raises:
        ConfigError: Names the layers. An expert that is a layer of its own may have had no tokens and is passed over.
    """
    there, values = found.tolist()
    unreached = [name for name, count in zip(names, there, strict=True) if not count and "expert" not in name]
    if unreached:
        raise ConfigError([_refusal(name) for name in unreached])
    if not any(values):
        if not has_loss:
            return False
        raise ConfigError(
            f"adapters must get a gradient, but it is zero for all of {', '.join(names[:3])} ({len(names)} layers) "
            "after the first backward pass; choose targets whose output the loss depends on"
        )
    if still := [name for name, count in zip(names, values, strict=True) if not count]:
        logger.warning(
            "the first gradient is zero for %d of %d adapters, such as that of %s: what comes after them may hide them",
            len(still), len(names), still[0],
        )  # fmt: skip
    return True
