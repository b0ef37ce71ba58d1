"""The manifest: what a checkpoint holds, written last; without a valid one there is no checkpoint.

A checkpoint's data is raw little-endian tensor bytes. Each rank that saved wrote one stream of bytes, cut into files of
equal size (the last may be shorter); a tensor is a set of chunks, each at an offset of some rank's stream. Reading a
checkpoint needs this JSON and those bytes, and nothing that could run code.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any

from modlib.runtime.errors import CheckpointError
from modlib.runtime.json_files import JSONError, parse_json

FORMAT = "modlib-checkpoint"
FORMAT_VERSION = 1
MAX_MANIFEST_BYTES = 1 << 30
DTYPE_BYTES = {
    **dict.fromkeys(("bool", "uint8", "int8", "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz"), 1),
    **dict.fromkeys(("int16", "uint16", "float16", "bfloat16"), 2),
    **dict.fromkeys(("int32", "uint32", "float32"), 4),
    **dict.fromkeys(("int64", "uint64", "float64", "complex64"), 8),
    "complex128": 16,
}
"""Bytes per value of each element type that a checkpoint can hold, by torch's name."""

_FILE_NAME = re.compile(r"(data-\d{5,}-\d{5,}\.bin|rank-\d{5,}\.json)", re.ASCII)
_SHA256 = re.compile(r"[0-9a-f]{64}", re.ASCII)
_MAX_DIMS = 64


class DamagedCheckpointError(CheckpointError):
    """A committed checkpoint is no longer what was saved; the text names the file."""


@dataclass(frozen=True)
class StoredFile:
    """One file beside the manifest: its size in bytes and the SHA-256 of its content in hex."""

    size: int
    sha256: str


@dataclass(frozen=True)
class Stream:
    """One rank's data: `size` bytes in all, cut into files of `file_size` bytes."""

    size: int
    file_size: int


@dataclass(frozen=True)
class Chunk:
    """A rectangular part of a tensor: where it lies in the tensor, and where its bytes lie in which rank's stream."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    rank: int
    start: int


@dataclass(frozen=True)
class StoredTensor:
    """A tensor's element type and global shape, and the chunks that make it up."""

    dtype: str
    shape: tuple[int, ...]
    chunks: tuple[Chunk, ...]


@dataclass(frozen=True)
class Manifest:
    """Everything a checkpoint holds beside the tensor bytes.

    Args:
        save_id: Unique to one save; the files of two saves cannot be mixed unnoticed.
        step: Optimizer steps done.
        world_size: Number of ranks that saved it.
        files: Name -> size and hash of every other file of the checkpoint.
        streams: Rank -> its stream of data files.
        tensors: Key ("model.<name>" or "optimizer.<name>.<state>") -> type, shape, place.
        aliases: Key of a tied parameter -> the key it is stored under.
        optimizer, scheduler: Their JSON state, None where none was saved.
        extra: The caller's JSON state (data position, logger ids, ...), encoded.
        info: The caller's description (config hash, layout, ...), encoded.
        versions: torch, modlib and Python that saved it.
    """

    save_id: str
    step: int
    world_size: int
    files: dict[str, StoredFile]
    streams: dict[int, Stream]
    tensors: dict[str, StoredTensor]
    aliases: dict[str, str] = field(default_factory=dict)
    optimizer: dict[str, Any] | None = None
    scheduler: dict[str, Any] | None = None
    extra: Any = None
    info: Any = None
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def num_bytes(self) -> int:
        """Bytes of all files beside the manifest."""
        return sum(file.size for file in self.files.values())

    def to_bytes(self) -> bytes:
        """The manifest as JSON with a SHA-256 of itself."""
        body = {"format": FORMAT, "format_version": FORMAT_VERSION, **asdict(self)}
        body = parse_json(json.dumps(body), dict[str, Any])  # tuples and integer keys become what a reader will see
        return json.dumps({"sha256": _digest(body), **body}).encode()


def parse_manifest(data: bytes) -> Manifest:
    """Read and check a manifest; every number in it that later code relies on is checked here.

    Raises:
        ValueError: It is not a valid manifest; the text says why.
    """
    try:
        body = parse_json(data, dict[str, Any])
    except JSONError as error:
        raise ValueError(error.problem) from error
    claimed = body.pop("sha256", None)
    _require(body.get("format") == FORMAT, f"is not of the format {FORMAT}")
    version = body.pop("format_version", None)
    _require(version == FORMAT_VERSION, f"has format_version ({version}), which must equal {FORMAT_VERSION}")
    body["format_version"] = version
    try:
        _require(claimed == _digest(body), "does not match its own SHA-256")
        manifest = _build(body)
        _check_places(manifest)
    except (KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise ValueError(f"has a missing or malformed entry ({type(error).__name__}: {error})") from error
    return manifest


def data_file_name(rank: int, index: int) -> str:
    """Name of one file of a rank's stream."""
    return f"data-{rank:05d}-{index:05d}.bin"


def rank_file_name(rank: int) -> str:
    """Name of the file with a rank's own state."""
    return f"rank-{rank:05d}.json"


def _digest(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _require(condition: bool, problem: str) -> None:
    if not condition:
        raise ValueError(problem)


def _number(value: Any, least: int = 0) -> int:
    _require(
        type(value) is int and least <= value < 1 << 62, f"has a number ({value!r}) that must be an int >= {least}"
    )
    return int(value)


def _numbers(values: Any) -> tuple[int, ...]:
    _require(isinstance(values, list) and len(values) <= _MAX_DIMS, "has a malformed shape")
    return tuple(_number(value) for value in values)


def _build(body: dict[str, Any]) -> Manifest:
    files = {name: StoredFile(_number(entry["size"]), entry["sha256"]) for name, entry in body["files"].items()}
    for name, file in files.items():
        _require(_FILE_NAME.fullmatch(name) is not None, f"names a file ({name!r}) that no checkpoint has")
        _require(_SHA256.fullmatch(file.sha256) is not None, f"has a malformed sha256 for {name}")
    tensors = {
        key: StoredTensor(
            entry["dtype"],
            _numbers(entry["shape"]),
            tuple(
                Chunk(
                    _numbers(chunk["offsets"]),
                    _numbers(chunk["sizes"]),
                    _number(chunk["rank"]),
                    _number(chunk["start"]),
                )
                for chunk in entry["chunks"]
            ),
        )
        for key, entry in body["tensors"].items()
    }
    streams = {
        int(rank): Stream(_number(entry["size"]), _number(entry["file_size"], 1))
        for rank, entry in body["streams"].items()
    }
    _require(all(isinstance(body[name], dict | None) for name in ("optimizer", "scheduler")), "has malformed state")
    _require(all(isinstance(tensor.dtype, str) for tensor in tensors.values()), "has a dtype that is no text")
    _require(all(target in tensors for target in body["aliases"].values()), "has an alias of a tensor it does not hold")
    return Manifest(
        save_id=str(body["save_id"]),
        step=_number(body["step"]),
        world_size=_number(body["world_size"], 1),
        files=files,
        streams=streams,
        tensors=tensors,
        aliases=dict(body["aliases"]),
        optimizer=body["optimizer"],
        scheduler=body["scheduler"],
        extra=body["extra"],
        info=body["info"],
        versions=dict(body["versions"]),
    )


def _check_places(manifest: Manifest) -> None:
    """Every stream must be all of its files, every chunk inside its tensor and its stream, every tensor whole."""
    expected: dict[str, int] = {}
    for rank, stream in manifest.streams.items():
        count = -(-stream.size // stream.file_size)
        _require(count <= len(manifest.files), f"has a stream of rank {rank} without its files")
        for index in range(count):
            expected[data_file_name(rank, index)] = min(stream.file_size, stream.size - index * stream.file_size)
    present = {name: file.size for name, file in manifest.files.items() if name.startswith("data-")}
    _require(present == expected, "has data files that do not make up its streams")
    taken: list[tuple[int, int, int, str]] = []  # rank, first and last byte in its stream, key
    for key, tensor in manifest.tensors.items():
        _require(tensor.dtype in DTYPE_BYTES, f"has an unknown dtype ({tensor.dtype!r}) for {key}")
        values = 0
        for chunk in tensor.chunks:
            inside = len(chunk.offsets) == len(chunk.sizes) == len(tensor.shape) and all(
                offset + size <= length
                for offset, size, length in zip(chunk.offsets, chunk.sizes, tensor.shape, strict=True)
            )
            _require(inside, f"has a chunk outside its tensor {key}")
            num_bytes = math.prod(chunk.sizes) * DTYPE_BYTES[tensor.dtype]
            _require(
                chunk.rank in manifest.streams and chunk.start + num_bytes <= manifest.streams[chunk.rank].size,
                f"has a chunk of {key} outside its stream",
            )
            values += math.prod(chunk.sizes)
            if num_bytes:
                taken.append((chunk.rank, chunk.start, chunk.start + num_bytes, key))
        _require(
            values == math.prod(tensor.shape) and not _overlap(tensor.chunks),
            f"has chunks that do not make up the tensor {key}",
        )
    taken.sort()
    for (rank, _, end, _), (next_rank, start, _, key) in pairwise(taken):
        _require(rank != next_rank or end <= start, f"has a chunk of {key} in the bytes of another one")


def _overlap(chunks: Sequence[Chunk]) -> bool:
    """Whether two chunks have a value in common. Quick where they are cut along any one dimension."""
    chunks = [chunk for chunk in chunks if all(chunk.sizes)]
    if len(chunks) < 2:
        return False
    cut = max(range(len(chunks[0].offsets)), key=lambda dim: len({chunk.offsets[dim] for chunk in chunks}))
    before: list[Chunk] = []  # those that reach as far as the chunk that is looked at
    for chunk in sorted(chunks, key=lambda chunk: chunk.offsets[cut]):
        before = [other for other in before if other.offsets[cut] + other.sizes[cut] > chunk.offsets[cut]]
        if any(_have_common_value(chunk, other) for other in before):
            return True
        before.append(chunk)
    return False


def _have_common_value(one: Chunk, other: Chunk) -> bool:
    places = zip(one.offsets, one.sizes, other.offsets, other.sizes, strict=True)
    return all(begin < first + length and first < begin + size for begin, size, first, length in places)
