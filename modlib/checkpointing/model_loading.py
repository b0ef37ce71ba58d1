"""Loading only a model's weights: for a warm start, from this library's checkpoints or from single files."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from modlib.checkpointing.coordination import Ranks
from modlib.checkpointing.state import WRAPPER_NAMES
from modlib.checkpointing.strictness import listed
from modlib.checkpointing.warm_start import load_weights
from modlib.components import component
from modlib.config.suggestions import similar
from modlib.distributed.local_part import Slices, copy_part
from modlib.runtime.errors import CheckpointError, ConfigError
from modlib.runtime.weight_index import indexed_files

logger = logging.getLogger("modlib")
TORCH_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt")
CONTAINERS = ("model", "state_dict", "model_state_dict")
"""Keys under which training scripts put a model's weights beside other things."""


@component("checkpoint_loading", "fsdp")
class FSDPCheckpointLoading:
    """Weights from a checkpoint of this library, saved on any number of ranks, verified while it is read.

    Only the model's bytes are read, and by each rank only those of its shards.

    Raises:
        CheckpointError: (When it is read) it is damaged, or its names, shapes and dtypes are not the model's.
    """

    def load_model(self, path: Path | str, model: nn.Module, names: Collection[str] | None = None) -> None:
        """Copy weights into the model in place; all ranks call it together.

        Args:
            path: A checkpoint, or a run's or checkpoints folder, which stands for its newest undamaged checkpoint.
            model: Plain, or sharded by FSDP2.
            names: Full names of the parameters and persistent buffers to set; None sets all.

        Raises:
            CheckpointError: A name is not in the checkpoint, or of another shape or dtype.
            DamagedCheckpointError: It is not what was saved.
        """
        tied = _by_tensor(model, names)
        found = load_weights(path, {group[0]: tensor for group, tensor in tied})
        logger.info("weights of %s are those of %s", type(model).__name__, found)


@component("checkpoint_loading", "torch")
class TorchCheckpointLoading:
    """Weights from a single file: .safetensors, or .bin/.pt/.pth of torch.save; nothing in it is ever run.

    A folder stands for the model.safetensors or pytorch_model.bin in it, or for the files of a safetensors index.
    Prefixes that torch.compile, DistributedDataParallel and activation checkpointing add to names are dropped, and
    weights under "model" or "state_dict" are found. Values become the model's dtype.

    Args:
        ignore: Regular expressions of names in the file that the model does not need, matched in full.

    Raises:
        ConfigError: One of `ignore` is no regular expression.
        CheckpointError: (When it is read) the file would run code, or its names and shapes are not the model's.
    """

    def __init__(self, ignore: Sequence[str] = ()) -> None:
        try:
            self.ignored = [re.compile(pattern) for pattern in ignore]
        except re.error as error:
            raise ConfigError(f"ignore ({error.pattern!r}) must be a regular expression: {error}") from error

    def load_model(self, path: Path | str, model: nn.Module, names: Collection[str] | None = None) -> None:
        """Copy weights into the model in place; each rank reads its own shards where the file allows.

        Args:
            path: A file or folder.
            model: Plain, or sharded by FSDP2.
            names: Full names of the parameters and persistent buffers to set; None sets all.

        Raises:
            CheckpointError: The file cannot be read safely, or its names and shapes are not the model's.
        """
        groups = _by_tensor(model, names)
        with ExitStack() as stack:

            def opened() -> Mapping[str, _Stored]:
                stored = _opened(Path(path), stack, {name for group, _ in groups for name in group})
                self._require_fit(groups, stored, f"weights in {path} must be {type(model).__name__}'s")
                return stored

            stored = Ranks().agree(opened)
            cast = set()
            for group, tensor in groups:
                weight = stored[next(name for name in group if name in stored)]
                copy_part(tensor, weight.read)
                if weight.dtype not in (None, tensor.dtype):
                    cast.add(f"{weight.dtype} to {tensor.dtype}".replace("torch.", ""))
        logger.info(
            "weights of %s are those of %s%s", type(model).__name__, path,
            f", cast from {', '.join(sorted(cast))}" if cast else "",
        )  # fmt: skip

    def _require_fit(
        self, groups: list[tuple[list[str], Tensor]], stored: Mapping[str, _Stored], expectation: str
    ) -> None:
        wanted = {name for group, _ in groups for name in group}
        surplus = [name for name in stored if name not in wanted and not any(p.fullmatch(name) for p in self.ignored)]
        missing = [group[0] for group, _ in groups if not any(name in stored for name in group)]
        shapes = [
            f"{name} (file {stored[name].shape}, model {tuple(tensor.shape)})"
            for group, tensor in groups
            for name in group
            if name in stored and stored[name].shape != tuple(tensor.shape)
        ]
        problems = [
            *listed("missing from the file", (_with_hint(name, surplus) for name in missing)),
            *listed("only in the file", surplus),
            *listed("of another shape", shapes),
            *listed("tied in the model but different in the file", _untied(groups, stored)),
        ]
        if problems:
            raise CheckpointError(
                f"{expectation}; choose the model that was saved"
                + (", or name what it does not need in TorchCheckpointLoading.ignore" if surplus else "")
                + "".join(f"\n  {problem}" for problem in problems)
            )


class _Stored:
    """One tensor of a file, not read yet."""

    def __init__(self, shape: Sequence[int], dtype: torch.dtype | None, read: Callable[[Slices], Tensor]) -> None:
        self.shape = tuple(shape)
        self._dtype = dtype
        self._read = read

    def read(self, slices: Slices) -> Tensor:
        """A part of it."""
        part = self._read(slices)
        self._dtype = part.dtype
        return part

    @property
    def dtype(self) -> torch.dtype | None:
        """Of the values; for a safetensors file known once something was read."""
        return self._dtype


def _opened(path: Path, stack: ExitStack, wanted: Collection[str]) -> dict[str, _Stored]:
    """The tensors of a file or folder by their plain names; files stay open as long as the stack."""
    found: dict[str, _Stored] = {}
    for each in _files(path):
        try:
            tensors = _of_torch(each) if each.suffix in TORCH_SUFFIXES else _of_safetensors(each, stack)
        except CheckpointError:
            raise
        except Exception as error:
            raise CheckpointError(f"weights in {each} cannot be read: {error}") from error
        prefixed = all(name.replace("_orig_mod.", "").startswith("module.") for name in tensors)
        if prefixed and not any(name.startswith("module.") for name in wanted):  # DistributedDataParallel's
            tensors = {name.replace("module.", "", 1): tensor for name, tensor in tensors.items()}
        for name, tensor in tensors.items():
            for wrapper in WRAPPER_NAMES:
                name = name.replace(wrapper, "")
            if name in found:
                raise CheckpointError(f"weights in {path} must hold {name} once; two of its names stand for it")
            found[name] = tensor
    return found


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        if path.suffix not in (*TORCH_SUFFIXES, ".safetensors"):
            raise CheckpointError(
                f"weights ({path}) must be a .safetensors, {', '.join(TORCH_SUFFIXES)} file or a folder with one; "
                "for checkpoints of this library use FSDPCheckpointLoading"
            )
        return [path]
    index = path / "model.safetensors.index.json"
    if index.is_file():
        return indexed_files(index)
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (path / name).is_file():
            return [path / name]
    raise CheckpointError(
        f"weights ({path}) must hold model.safetensors, its index, or pytorch_model.bin; name the file itself, or use "
        "FSDPCheckpointLoading for checkpoints of this library"
    )


def _of_safetensors(path: Path, stack: ExitStack) -> dict[str, _Stored]:
    from safetensors import safe_open

    file = stack.enter_context(safe_open(path, framework="pt", device="cpu"))

    def reader(name: str) -> Callable[[Slices], Tensor]:
        return lambda slices: file.get_slice(name)[slices] if slices else file.get_tensor(name)

    names = list(file.keys())
    return {name: _Stored(file.get_slice(name).get_shape(), None, reader(name)) for name in names}


def _of_torch(path: Path) -> dict[str, _Stored]:
    import pickle

    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=_is_zip(path))
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} must hold only tensors and plain values, and holds something that would run code when it is "
            "loaded; save the state dict alone, as safetensors"
        ) from error
    state = _state_in(content)
    if state is None:
        raise CheckpointError(
            f"{path} must hold a state dict (name -> tensor), or one under {', '.join(CONTAINERS)}; it holds "
            f"{_described(content)}"
        )
    return {name: _Stored(tensor.shape, tensor.dtype, tensor.__getitem__) for name, tensor in state.items()}


def _state_in(content: Any) -> dict[str, Tensor] | None:
    if not isinstance(content, Mapping) or not content:
        return None
    if all(isinstance(value, Tensor) for value in content.values()):
        return dict(content)
    return next((state for key in CONTAINERS if (state := _state_in(content.get(key))) is not None), None)


def _described(content: Any) -> str:
    if not isinstance(content, Mapping):
        return type(content).__name__
    others = [f"{name} ({type(value).__name__})" for name, value in content.items() if not isinstance(value, Tensor)]
    return f"beside tensors {', '.join(others[:5])}"


def _is_zip(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(4) == b"PK\x03\x04"


def _by_tensor(model: nn.Module, names: Collection[str] | None) -> list[tuple[list[str], Tensor]]:
    """Each wanted tensor of the model once, with all its names."""
    groups: dict[int, tuple[list[str], Tensor]] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        for wrapper in WRAPPER_NAMES:
            name = name.replace(wrapper, "")
        if names is None or name in names:
            groups.setdefault(id(tensor), ([], tensor))[0].append(name)
    unknown = sorted(set(names or ()) - {name for group, _ in groups.values() for name in group})
    assert not unknown, f"{unknown} are not names of {type(model).__name__}"
    return list(groups.values())


def _untied(groups: list[tuple[list[str], Tensor]], stored: Mapping[str, _Stored]) -> Iterator[str]:
    for group, tensor in groups:
        there = [name for name in group if name in stored and stored[name].shape == tuple(tensor.shape)]
        everything = tuple(slice(0, size) for size in tensor.shape)
        for name in there[1:]:
            if not torch.equal(stored[name].read(everything), stored[there[0]].read(everything)):
                yield f"{there[0]} and {name}"


def _with_hint(name: str, candidates: Sequence[str]) -> str:
    close = similar(name, candidates, most=1)
    return f"{name} (the file has {close[0]})" if close else name
