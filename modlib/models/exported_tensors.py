"""Which tensors an exported folder holds, and how each is made of the run's, one at a time."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from modlib.models.gpt2 import GPT2
from modlib.models.huggingface import PREFIX, HuggingFacePretrainedModel
from modlib.models.lora import ADAPTERS, adapters
from modlib.models.safetensors_writer import Output
from modlib.models.weight_names import parts_for_transformers
from modlib.models.weights import named_state
from modlib.models.whole_weights import Weights
from modlib.runtime.file_spans import FileSpan

PIECE_BYTES = 16 << 20

DtypeOf = Callable[[str], torch.dtype | None]
"""The dtype to write a tensor in, by its name in the folder; None keeps the run's."""


@dataclass(frozen=True)
class Conversion:
    """Some of the run's tensors, and what is made of them.

    Args:
        sources: Names in the run's model, without adapters.
        targets: Names in the folder.
        convert: Makes the targets of the sources, in their order; None: the one target is the one source.
    """

    sources: tuple[str, ...]
    targets: tuple[str, ...]
    convert: Callable[[Sequence[Tensor]], Sequence[Tensor]] | None = None


def conversions(model: nn.Module) -> list[Conversion]:
    """What is written of a model, in the model's order.

    Args:
        model: May be on meta, and have adapters, which are merged and so not in the list.

    Raises:
        ConfigError: A GPT2 that transformers has no architecture for.
    """
    if isinstance(model, GPT2):
        parts = parts_for_transformers(model)
        return [Conversion((p.ours,), p.theirs, None if p.is_same else partial(_one, p.convert)) for p in parts]
    if isinstance(model, HuggingFacePretrainedModel):
        return _of_network(model)
    return plain_conversions(model)


def plain_conversions(model: nn.Module) -> list[Conversion]:
    """Every tensor of a model's state as it is, a tied one once."""
    return [Conversion((name,), (name,)) for name in plain_state(model)]


def plain_state(model: nn.Module) -> dict[str, Tensor]:
    """The state without adapters, a tied tensor under the first of its names."""
    adapted = {f"{name}.{leaf}" for name, _ in adapters(model, remove_duplicate=False) for leaf in ADAPTERS}
    seen: set[int] = set()
    found: dict[str, Tensor] = {}
    for name, tensor in named_state(model).items():
        if name not in adapted and id(tensor) not in seen:
            seen.add(id(tensor))
            found[name] = tensor
    return found


def _one(convert: Callable[[Tensor], Sequence[Tensor]], tensors: Sequence[Tensor]) -> Sequence[Tensor]:
    return convert(tensors[0])


def _of_network(model: HuggingFacePretrainedModel) -> list[Conversion]:
    """By transformers' own rules: some architectures are stored otherwise than they are in memory (fused experts).

    These are turned back layer by layer, or as a whole where that gives other names.
    """
    from transformers.core_model_loading import revert_weight_conversion

    network: Any = model.network
    ignored = set(getattr(network, "_keys_to_ignore_on_save", None) or ())
    state = {
        name.removeprefix(PREFIX): torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
        for name, tensor in plain_state(model).items()
        if name.removeprefix(PREFIX) not in ignored
    }

    def revert(names: Sequence[str], tensors: Sequence[Tensor]) -> dict[str, Tensor]:
        return dict(revert_weight_conversion(network, dict(zip(names, tensors, strict=True))))

    whole = revert(list(state), list(state.values()))
    if list(whole) == list(state) or (
        set(whole) == set(state) and all(whole[name].shape == state[name].shape for name in state)
    ):
        return [Conversion((PREFIX + name,), (name,)) for name in state]
    groups: dict[str, list[str]] = {}
    for name in state:
        layer = re.match(r".*?\.\d+\.", name)
        groups.setdefault(layer[0] if layer else name, []).append(name)
    made = {key: list(revert(names, [state[name] for name in names])) for key, names in groups.items()}
    if sorted(name for names in made.values() for name in names) != sorted(whole):
        groups, made = {"": list(state)}, {"": list(whole)}

    def convert(names: Sequence[str], targets: Sequence[str], tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        reverted = revert(names, tensors)
        return [reverted[name] for name in targets]

    return [
        Conversion(tuple(PREFIX + name for name in names), tuple(made[key]), partial(convert, names, made[key]))
        for key, names in groups.items()
    ]


def outputs(model: nn.Module, found: Sequence[Conversion], weights: Weights, dtype_of: DtypeOf) -> list[Output]:
    """The tensors of the folder, to be written one after the other.

    Args:
        model: Says shapes and dtypes; may be on meta.
        found: Its conversions.
        weights: Of the plain model: adapters are merged.
        dtype_of: Asked for tensors of floating point; others stay.
    """
    state = {
        name: torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
        for name, tensor in named_state(model).items()
    }
    written: dict[str, Output] = {}
    for conversion in found:
        sources = [state[name] for name in conversion.sources]
        made = sources if conversion.convert is None else conversion.convert(sources)
        pending: dict[str, Tensor] = {}
        for name, tensor in zip(conversion.targets, made, strict=True):
            assert name not in written, name
            dtype = (dtype_of(name) if tensor.is_floating_point() else None) or tensor.dtype
            pieces: Callable[[], Iterator[Tensor | FileSpan]] = (
                partial(_copied, weights, conversion.sources[0], tensor, dtype)
                if conversion.convert is None
                else partial(_made, weights, conversion, name, pending)
            )
            written[name] = Output(name, tuple(tensor.shape), dtype, pieces)
    return list(written.values())


def _row_slices(shape: Sequence[int], dtype: torch.dtype) -> list[slice]:
    """Rows that are about PIECE_BYTES together."""
    if not shape or not shape[0]:
        return [slice(None)]
    row = dtype.itemsize
    for size in shape[1:]:
        row *= size
    step = max(1, PIECE_BYTES // max(1, row))
    return [slice(begin, min(begin + step, shape[0])) for begin in range(0, shape[0], step)]


def _copied(weights: Weights, name: str, tensor: Tensor, dtype: torch.dtype) -> Iterator[Tensor | FileSpan]:
    """A tensor as it is: its bytes from where they are, or read some rows at a time."""
    spans = weights.spans(name) if dtype == tensor.dtype else None
    if spans is not None:
        yield from spans
        return
    for rows in _row_slices(tensor.shape, tensor.dtype):
        yield weights.read(name, rows)


def _made(weights: Weights, conversion: Conversion, name: str, pending: dict[str, Tensor]) -> Iterator[Tensor]:
    """One of a conversion's tensors; the others wait until they are asked for, which is soon."""
    if name not in pending:
        assert conversion.convert is not None
        made = conversion.convert([weights.read(source) for source in conversion.sources])
        pending |= zip(conversion.targets, made, strict=True)
    yield pending.pop(name)
