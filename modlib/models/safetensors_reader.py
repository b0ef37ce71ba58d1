"""Tensors of safetensors files, any part of one by itself, read and not mapped, so that memory holds nothing else."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor

from modlib.models.safetensors_writer import NAMES
from modlib.runtime.errors import CheckpointError
from modlib.runtime.json_files import parse_json
from modlib.runtime.weight_index import indexed_files

_DTYPES = {name: dtype for dtype, name in NAMES.items()}


@dataclass(frozen=True)
class StoredWeight:
    """One tensor of a file.

    Args:
        shape: Of the whole.
        dtype: Of its values in the file.
        path: The file.
        descriptor: It, open.
        start: Its first byte there.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    path: Path
    descriptor: int
    start: int

    def values(self, begin: int, end: int) -> Tensor:
        """The values begin .. end of the tensor in row-major order: (end - begin,).

        Raises:
            CheckpointError: The file has become shorter, or cannot be read.
        """
        found = torch.empty(end - begin, dtype=self.dtype)
        rest = found.view(torch.uint8).numpy().data
        position = self.start + begin * self.dtype.itemsize
        try:
            while rest:
                done = os.preadv(self.descriptor, [rest], position)
                if not done:
                    raise CheckpointError(f"weights in {self.path} end too early; copy the folder again")
                rest, position = rest[done:], position + done
        except OSError as error:
            raise CheckpointError(f"weights in {self.path} cannot be read: {error.strerror}") from error
        return found

    def whole(self) -> Tensor:
        """All of it, in its shape."""
        return self.values(0, math.prod(self.shape)).view(self.shape)


class SafetensorsFolder:
    """The weights of a folder by name; a context, since it keeps files open.

    Args:
        folder: With model.safetensors, or its index and the files that it names.

    Raises:
        CheckpointError: (On entering) there are none, or a file is damaged.
    """

    def __init__(self, folder: Path) -> None:
        single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
        if single.is_file():
            self._paths: Sequence[Path] = [single]
        elif index.is_file():
            self._paths = indexed_files(index)
        else:
            raise CheckpointError(f"weights in {folder} must be model.safetensors, or its index and the files it names")
        self.weights: dict[str, StoredWeight] = {}
        self._opened = ExitStack()

    def __enter__(self) -> Self:
        try:
            for path in self._paths:
                self._open(path)
        except BaseException:
            self._opened.close()
            raise
        return self

    def __exit__(self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None) -> None:
        self._opened.close()

    def _open(self, path: Path) -> None:
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="pt", device="cpu"):
                pass  # the library has looked over the header: names, sizes, no byte twice or unused
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"weights in {path} cannot be read: {error}") from error
        self._opened.callback(os.close, descriptor)
        length = int.from_bytes(os.pread(descriptor, 8, 0), "little")
        header = parse_json(os.pread(descriptor, length, 8), dict[str, Any], place=str(path))
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            if entry["dtype"] not in _DTYPES:
                raise CheckpointError(f"weight {name} ({entry['dtype']}) of {path} must be of a dtype that torch has")
            if name in self.weights:
                raise CheckpointError(f"weight {name} must be in one file of {path.parent}; it is in two")
            start = 8 + length + entry["data_offsets"][0]
            self.weights[name] = StoredWeight(tuple(entry["shape"]), _DTYPES[entry["dtype"]], path, descriptor, start)
