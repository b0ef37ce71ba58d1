"""A packed token file in another order, whatever its size: the order is computed, the memory is bounded."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from modlib.data.packed.file import PackedFile
from modlib.data.packed.header import PackedHeader
from modlib.data.packed.pieces import Ids, Numbers, document_batches
from modlib.data.packed.writer import PackedFileWriter
from modlib.data.permutation import KeyedPermutation
from modlib.data.progress import Progress, no_progress
from modlib.data.rewriting import copying
from modlib.data.rewriting.copying import gathered
from modlib.runtime.errors import ConfigError, DataError

_GATHERED_AT_ONCE = 1 << 20  # tokens, at 8 bytes of index each
_BYTES_PER_PIECE = 32  # what is kept of a piece beside its tokens: place, start, length, and room to sort them


def shuffle(
    source: str | os.PathLike[str],
    path: str | os.PathLike[str],
    *,
    seed: int,
    unit: Literal["document", "block"] = "document",
    block_tokens: int | None = None,
    memory_mib: int = 512,
    overwrite: bool = False,
    progress: Progress = no_progress,
) -> PackedHeader:
    """Write the documents of a file in an order that the seed alone decides; the memory limit does not change it.

    A file that does not fit the limit is first dealt out, in its own order, to parts beside the output that do; each
    part then holds neighbours of the new order, and is put in order in memory. Both passes read and write in sequence.

    Memory: memory_mib, and 32 bytes per document or block of the whole file. Disk: the file once more, meanwhile.

    Args:
        source: A packed file.
        path: The file to make.
        seed: Another seed is another order.
        unit: "document", or "block": stretches of block_tokens tokens, which become the documents of the new file,
            so that the texts of each are cut at its ends.
        block_tokens: Goes with "block"; a training window is seq_len + 1 tokens.
        memory_mib: At least 1.
        overwrite: Whether an existing file is replaced.
        progress: Called with the tokens done, and all of them: each is read once or twice.

    Raises:
        ConfigError: A number is out of range, or block_tokens without unit "block".
        DataError: The file is damaged, or the output cannot be written.

    Source: Sanders 1998, Random permutations on distributed, external and hierarchical memory.
    """
    _check(seed, unit, block_tokens, memory_mib)
    packed = copying.open_plain(source)
    pieces = _Pieces(packed, block_tokens)
    budget = memory_mib << 20
    size = packed.num_tokens * (packed.header.token_width + packed.has_loss_mask) + _BYTES_PER_PIECE * len(pieces)
    num_parts = max(1, -(-2 * size // budget))
    passes = _Passes(progress, packed.num_tokens * (1 if num_parts == 1 else 2))
    changes = {"end_of_document_id": None} if unit == "block" else {}  # a block ends anywhere
    with copying.writer_like(packed, path, overwrite=overwrite, **changes) as writer:
        if not len(pieces):
            pass
        elif num_parts == 1:
            places = pieces.places(seed, 0, len(pieces))
            starts, lengths = pieces.extents(0, len(pieces))
            mask = packed.trained(0, packed.num_tokens) if packed.has_loss_mask else None
            _write_in_order(writer, packed.tokens, mask, places, starts, lengths, passes)
        else:
            _in_parts(writer, pieces, seed, num_parts, budget, passes)
        writer.num_bytes_of_text = packed.num_bytes_of_text
    assert writer.header is not None
    copying.copy_tokenizer(packed.path, path)
    options = {"seed": seed, "unit": unit, "block_tokens": block_tokens}
    copying.write_provenance(path, writer.header, "shuffle", options, [copying.described(packed)])
    return writer.header


def shuffled_in_memory(packed: PackedFile, seed: int) -> tuple[Ids, Numbers, npt.NDArray[np.bool_] | None]:
    """Tokens, document offsets and loss mask, if any, of what `shuffle` makes of the documents of a file."""
    pieces = _Pieces(packed, None)
    starts, lengths = pieces.extents(0, len(pieces))
    order = np.argsort(pieces.places(seed, 0, len(pieces)))
    ids = gathered(packed.tokens, starts[order], lengths[order])
    mask = None
    if packed.has_loss_mask:
        mask = gathered(packed.trained(0, packed.num_tokens), starts[order], lengths[order])
    return ids, np.concatenate([[0], np.cumsum(lengths[order])]), mask


def _check(seed: int, unit: str, block_tokens: int | None, memory_mib: int) -> None:
    problems = []
    if seed < 0:
        problems.append(f"seed ({seed}) must be at least 0; choose another seed")
    if memory_mib < 1:
        problems.append(f"memory_mib ({memory_mib}) must be at least 1; set it to 1 or more")
    if unit not in ("document", "block"):
        problems.append(f"unit ({unit}) must be document or block; choose one of them")
    elif (unit == "block") != (block_tokens is not None):
        problems.append(
            f"block_tokens ({block_tokens}) must be given with unit block, and only then; unit is {unit}: "
            + ("add --block_tokens N" if block_tokens is None else "add --unit block")
        )
    elif block_tokens is not None and block_tokens < 1:
        problems.append(f"block_tokens ({block_tokens}) must be at least 1; set it to 1 or more")
    if problems:
        raise ConfigError(problems)


class _Pieces:
    """What is shuffled: documents, or blocks of one length (the last may be shorter)."""

    def __init__(self, packed: PackedFile, block_tokens: int | None) -> None:
        self.packed = packed
        self.block_tokens = block_tokens

    def __len__(self) -> int:
        if self.block_tokens is None:
            return self.packed.num_documents
        return -(-self.packed.num_tokens // self.block_tokens)

    def extents(self, first: int, last: int) -> tuple[Numbers, Numbers]:
        """Start and length of pieces first..last-1."""
        if self.block_tokens is None:
            offsets = np.asarray(self.packed.document_offsets[first : last + 1], np.int64)
        else:
            offsets = np.minimum(np.arange(first, last + 1) * self.block_tokens, self.packed.num_tokens)
        lengths = np.diff(offsets)
        if lengths.size and (lengths.min() < 0 or offsets[0] < 0 or offsets[-1] > self.packed.num_tokens):
            raise DataError(f"document offsets of {self.packed.path} must rise; the file is damaged: copy it again")
        return offsets[:-1], lengths

    def places(self, seed: int, first: int, last: int) -> Numbers:
        """Where pieces first..last-1 go in the new order."""
        order = KeyedPermutation(len(self), f"modlib shuffle of a packed file {seed}")
        return order(np.arange(first, last))

    def batches(self, most_tokens: int, most: int) -> Iterator[tuple[int, int]]:
        """Pieces in batches of at most so many tokens and pieces, or one longer piece."""
        if self.block_tokens is None:
            offsets = self.packed.document_offsets
            yield from document_batches(offsets, batch_tokens=most_tokens, batch_documents=most)
            return
        step = min(max(1, most_tokens // self.block_tokens), most)
        for first in range(0, len(self), step):
            yield first, min(first + step, len(self))


@dataclass
class _Passes:
    """Counts tokens over both passes."""

    progress: Progress
    total: int
    done: int = 0

    def add(self, tokens: int) -> None:
        self.done += tokens
        self.progress(self.done, self.total)


def _in_parts(
    writer: PackedFileWriter, pieces: _Pieces, seed: int, num_parts: int, budget: int, passes: _Passes
) -> None:
    folder = writer.path.with_name(f".{writer.path.name}.{secrets.token_hex(4)}.parts")
    try:
        folder.mkdir()
        _deal_out(folder, pieces, seed, num_parts, budget, passes)
        for number in range(num_parts):
            _take_in(writer, folder, number, pieces.packed.tokens.dtype, budget, passes)
    except OSError as error:
        raise DataError(
            f"parts of {writer.path} cannot be kept in {folder}: {error.strerror or error}; free space: the file is "
            "written once more while it is shuffled"
        ) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _deal_out(folder: Path, pieces: _Pieces, seed: int, num_parts: int, budget: int, passes: _Passes) -> None:
    """Append each piece to the part that its place belongs to."""
    packed = pieces.packed
    bytes_per_token = packed.header.token_width + packed.has_loss_mask
    # An eighth of the limit for a batch's tokens, again for those of a part, and as much for 64 bytes of each piece.
    for first, last in pieces.batches(max(1, budget // (8 * bytes_per_token)), max(1, budget // 512)):
        starts, lengths = pieces.extents(first, last)
        places = pieces.places(seed, first, last)
        parts = places // -(-len(pieces) // num_parts)
        order = np.argsort(parts, kind="stable")
        starts, lengths, places, parts = starts[order], lengths[order], places[order], parts[order]
        borders = np.flatnonzero(np.diff(parts, prepend=-1, append=num_parts))
        base, behind = int(starts.min()), int((starts + lengths).max())
        arrays = {"tokens": packed.tokens[base:behind]}
        if packed.has_loss_mask:  # a byte per token: pieces begin anywhere within one of the file's
            arrays["mask"] = packed.trained(base, behind)
        for begin, end in zip(borders[:-1].tolist(), borders[1:].tolist(), strict=True):
            name = str(parts[begin])
            for kind, array in arrays.items():
                with open(folder / f"{name}.{kind}", "ab") as file:
                    for stretch in _gathered(array, starts[begin:end] - base, lengths[begin:end]):
                        file.write(np.ascontiguousarray(stretch).view(np.uint8).data)
            with open(folder / f"{name}.pieces", "ab") as extents:
                extents.write(np.stack([places[begin:end], lengths[begin:end]], axis=1).tobytes())
        passes.add(int(lengths.sum()))


def _take_in(
    writer: PackedFileWriter, folder: Path, number: int, dtype: np.dtype[Any], budget: int, passes: _Passes
) -> None:
    """Write one part in order, and remove it."""
    tokens_path, pieces_path = folder / f"{number}.tokens", folder / f"{number}.pieces"
    mask_path = folder / f"{number}.mask"
    if not pieces_path.exists():
        return
    places, lengths = np.fromfile(pieces_path, np.int64).reshape(-1, 2).T.copy()
    tokens = _read(tokens_path, dtype, budget)
    mask = _read(mask_path, np.dtype(np.bool_), budget) if writer.has_loss_mask else None
    _write_in_order(writer, tokens, mask, places, np.cumsum(lengths) - lengths, lengths, passes)
    tokens_path.unlink()
    pieces_path.unlink()
    mask_path.unlink(missing_ok=True)


def _read(path: Path, dtype: np.dtype[Any], budget: int) -> npt.NDArray[Any]:
    size = path.stat().st_size
    if size == 0:
        return np.zeros(0, dtype)
    if size <= budget:
        return np.fromfile(path, dtype)
    return np.memmap(path, dtype, "r")  # one huge document: the page cache holds what fits


def _write_in_order(
    writer: PackedFileWriter,
    tokens: Ids,
    mask: npt.NDArray[np.bool_] | None,
    places: Numbers,
    starts: Numbers,
    lengths: Numbers,
    passes: _Passes,
) -> None:
    order = np.argsort(places)
    starts, lengths = starts[order], lengths[order]
    ends = np.concatenate([[0], np.cumsum(lengths)])
    for first, last in document_batches(ends, batch_tokens=_GATHERED_AT_ONCE):
        (ids,) = _gathered(tokens, starts[first:last], lengths[first:last], whole=True)
        trained = None
        if mask is not None:
            (trained,) = _gathered(mask, starts[first:last], lengths[first:last], whole=True)
        writer.write_documents(ids, lengths[first:last], trained=trained)
        passes.add(len(ids))


def _gathered(tokens: Ids, starts: Numbers, lengths: Numbers, whole: bool = False) -> Iterator[Ids]:
    """Stretches back to back, in batches unless whole; one alone is a view."""
    ends = np.concatenate([[0], np.cumsum(lengths)])
    batches = [(0, len(lengths))] if whole else document_batches(ends, batch_tokens=_GATHERED_AT_ONCE)
    for first, last in batches:
        if last - first == 1:
            yield tokens[starts[first] : starts[first] + lengths[first]]
        else:
            yield gathered(tokens, starts[first:last], lengths[first:last])
