"""Tensors to safetensors files, one tensor in memory at a time.

The library writes what it is given all at once; this writes the same bytes. Format: 8 bytes of length, a JSON header
(https://github.com/huggingface/safetensors#format), and the tensors' bytes one after the other.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from modlib.runtime.errors import ConfigError
from modlib.runtime.file_spans import FileSpan, append_span

MOST_SHARD_BYTES = 5_000_000_000
"""As transformers 4 cuts its files."""
NAMES = {
    torch.bool: "BOOL", torch.uint8: "U8", torch.int8: "I8", torch.int16: "I16", torch.uint16: "U16",
    torch.int32: "I32", torch.uint32: "U32", torch.int64: "I64", torch.uint64: "U64", torch.float16: "F16",
    torch.bfloat16: "BF16", torch.float32: "F32", torch.float64: "F64", torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2", torch.complex64: "C64",
}  # fmt: skip


@dataclass(frozen=True)
class Output:
    """A tensor to write.

    Args:
        name: In the file.
        shape: Of the whole.
        dtype: It is written in; pieces are cast to it.
        pieces: Gives it in parts, rows after rows: tensors on the CPU, or the place of their bytes, which must be of
            the dtype already.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    pieces: Callable[[], Iterator[Tensor | FileSpan]]

    @property
    def num_bytes(self) -> int:
        """Of the tensor in the file."""
        return math.prod(self.shape) * self.dtype.itemsize


def write_safetensors(folder: Path, outputs: Sequence[Output], most_bytes: int = MOST_SHARD_BYTES) -> None:
    """Write model.safetensors, or several files and their index where they would be larger than most_bytes.

    Args:
        folder: Is there.
        outputs: In any order; those that are made of the same tensors next to each other.
        most_bytes: Of one file, unless one tensor has more.

    Raises:
        ConfigError: A dtype that the format does not have.
        OSError: It cannot be written.
    """
    for output in outputs:
        if output.dtype not in NAMES:
            kind = str(output.dtype).removeprefix("torch.")
            raise ConfigError(f"weight {output.name} ({kind}) must be of a dtype that safetensors has; name --dtype")
    assert sys.byteorder == "little"
    shards: list[list[Output]] = [[]]
    size = 0
    for output in outputs:
        if shards[-1] and size + output.num_bytes > most_bytes:
            shards.append([])
            size = 0
        shards[-1].append(output)
        size += output.num_bytes
    if len(shards) == 1:
        _write(folder / "model.safetensors", shards[0])
        return
    files = {
        f"model-{number:05d}-of-{len(shards):05d}.safetensors": shard for number, shard in enumerate(shards, start=1)
    }
    for name, shard in files.items():
        _write(folder / name, shard)
    index = {
        "metadata": {
            "total_parameters": sum(math.prod(output.shape) for output in outputs),
            "total_size": sum(output.num_bytes for output in outputs),
        },
        "weight_map": dict(sorted((output.name, name) for name, shard in files.items() for output in shard)),
    }
    text = json.dumps(index, indent=2, sort_keys=True)
    (folder / "model.safetensors.index.json").write_text(text + "\n", encoding="utf-8")


def _write(path: Path, outputs: Sequence[Output]) -> None:
    """In the library's order: wide types first, then by name."""
    ordered = sorted(outputs, key=lambda output: (-output.dtype.itemsize, output.name))
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    position = 0
    for output in ordered:
        end = position + output.num_bytes
        header[output.name] = {
            "dtype": NAMES[output.dtype], "shape": list(output.shape), "data_offsets": [position, end]
        }  # fmt: skip
        position = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb", buffering=0) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for output in ordered:
            done = 0
            for piece in output.pieces():
                if isinstance(piece, FileSpan):
                    append_span(file.fileno(), piece)
                    done += piece.length
                    continue
                cast = piece.detach().to(output.dtype).contiguous()
                done += cast.nbytes
                rest = cast.reshape(-1).view(torch.uint8).numpy().data
                while rest:  # one call writes at most 2 GiB
                    rest = rest[file.write(rest) :]
            assert done == output.num_bytes, output.name
