"""Packed token files mixed by weight into one, whatever their size: whole documents, in bounded memory."""

from __future__ import annotations

import hashlib
import math
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from modlib.data.datasets.mixture_dataset import slots_of
from modlib.data.packed import pieces
from modlib.data.packed.file import PackedFile
from modlib.data.packed.header import PackedHeader
from modlib.data.packed.pieces import Ids, Numbers
from modlib.data.progress import Progress, no_progress
from modlib.data.rewriting import copying
from modlib.data.rewriting.copying import gathered
from modlib.data.rewriting.merge import require_alike
from modlib.data.rewriting.shuffle import shuffle, shuffled_in_memory
from modlib.data.text.boundary_tokens import begin_in_all
from modlib.runtime.errors import ConfigError, DataError

Unit = Literal["tokens", "documents"]
Mask = npt.NDArray[np.bool_]
Turns = npt.NDArray[np.float64]


@dataclass(frozen=True)
class MixedSource:
    """What a mixture took from one file.

    Args:
        path: The file.
        share: Of the mixture, as asked for.
        documents: That were taken; one that was taken twice counts twice.
        tokens: Of these documents.
        epochs: How often the file was read, by documents; 2.5 is twice and half of it again.
    """

    path: Path
    share: float
    documents: int
    tokens: int
    epochs: float

    def to_json(self) -> dict[str, Any]:
        """For the provenance."""
        taken = {"taken_documents": self.documents, "taken_tokens": self.tokens}
        return {"share": self.share, **taken, "epochs": self.epochs}


def mix(
    inputs: Sequence[str | os.PathLike[str]],
    path: str | os.PathLike[str],
    *,
    weights: Sequence[float],
    unit: Unit = "tokens",
    num_tokens: int | None = None,
    epochs: int | None = None,
    seed: int = 0,
    memory_mib: int = 512,
    overwrite: bool = False,
    progress: Progress = no_progress,
) -> tuple[PackedHeader, list[MixedSource]]:
    """Write documents of several files so that each has its share in any beginning of the new file.

    The next document is one of the file that is furthest behind its share. So in every beginning that ends with a
    document, the tokens (or documents) taken from two files differ from their shares by no more than the longest
    document (or by one). A file is read in a random order without repetition until it is used up, then again in
    another order. The result follows from the inputs, the weights, the unit and the seed; another length is the same
    beginning.

    Where one of the files has a loss mask, the new one has one too, in which all tokens of the others are trained.

    Each file is shuffled once per epoch: in memory where that is enough, else by `packed_shuffle.shuffle` into a folder
    beside the output, and read from there in sequence. Memory: twice memory_mib at most, 32 bytes per document of the
    largest file, and a few batches of tokens. Disk: the large files once more, meanwhile.

    Args:
        inputs: Packed files of one tokenizer; one may be named more than once.
        path: The file to make.
        weights: One per file, above 0; they need not add up to 1. Exact with up to four decimals, see
            `mixture_dataset.slots_of`.
        unit: What is weighed: tokens or documents.
        num_tokens: Ends with the document with which there are so many.
        epochs: Or when every file was read so often in full; the default is once.
        seed: Another seed is another order of the documents of each file.
        memory_mib: For shuffling.
        overwrite: Whether an existing file is replaced.
        progress: Called with the tokens written, and about how many there will be.

    Returns:
        The header, and what was taken from each file.

    Raises:
        ConfigError: A number is out of range, or there is not one weight per file.
        DataError: Files of different tokenizers, vocabularies or end-of-document tokens; one without tokens or damaged.
    """
    _check(inputs, weights, unit, num_tokens, epochs, seed)
    files = _opened(inputs)
    slots = slots_of(weights)
    sizes = [packed.num_tokens if unit == "tokens" else packed.num_documents for packed in files]
    end = math.inf if num_tokens is not None else max((epochs or 1) * one / its for one, its in zip(sizes, slots))
    expected = num_tokens or _expected(files, slots, sizes, unit, end)
    width = max(packed.header.token_width for packed in files)
    folder = Path(path).with_name(f".{Path(path).name}.{secrets.token_hex(4)}.parts")
    try:
        masked = any(packed.has_loss_mask for packed in files)
        changes: dict[str, Any] = {"token_width": width, "loss_mask": masked}
        changes |= {"info": begin_in_all(packed.header for packed in files)}
        with copying.writer_like(files[0], path, overwrite=overwrite, **changes) as writer:
            folder.mkdir()
            room = (memory_mib << 20) // len(files)
            streams = [
                _Stream(packed, folder / f"{number}.packed", its, unit, f"modlib mix {seed} {number}", memory_mib, room)
                for number, (packed, its) in enumerate(zip(files, slots, strict=True))
            ]
            for ids, trained, lengths in _in_turn(streams, end, num_tokens):
                writer.write_documents(ids, lengths, trained=trained if masked else None)
                progress(min(writer.num_tokens, expected), expected)
            writer.num_bytes_of_text = _bytes_of_text(streams)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    assert writer.header is not None
    mixed = [stream.summary(its / sum(slots)) for stream, its in zip(streams, slots, strict=True)]
    copying.copy_tokenizer(files[0].path, path)
    told = [copying.described(packed) | one.to_json() for packed, one in zip(files, mixed, strict=True)]
    options = {"weights": list(weights), "unit": unit, "num_tokens": num_tokens, "epochs": epochs, "seed": seed}
    copying.write_provenance(path, writer.header, "mix", options, told)
    return writer.header, mixed


def _opened(inputs: Sequence[str | os.PathLike[str]]) -> list[PackedFile]:
    files = [copying.open_plain(name) for name in inputs]
    for packed in files:
        require_alike(files[0], packed)
        if not packed.num_tokens:
            raise DataError(f"tokens of {packed.path} (0) must be at least 1; leave the file out of the mixture")
    return files


def _check(
    inputs: Sequence[Any], weights: Sequence[float], unit: str, num_tokens: int | None, epochs: int | None, seed: int
) -> None:
    problems = []
    if not inputs:
        problems.append("inputs (0 files) must be at least one packed file; name the files to mix")
    if len(weights) != len(inputs):
        problems.append(f"weights ({len(weights)}) must be as many as files ({len(inputs)}); give one each")
    if any(not (math.isfinite(weight) and weight > 0) for weight in weights):
        problems.append(f"weights ({list(weights)}) must all be above 0; leave out a file that is not wanted")
    if unit not in ("tokens", "documents"):
        problems.append(f"unit ({unit}) must be tokens or documents; choose one of them")
    if num_tokens is not None and epochs is not None:
        problems.append(f"num_tokens ({num_tokens}) and epochs ({epochs}) must not go together; leave one out")
    for name, value in (("num_tokens", num_tokens), ("epochs", epochs)):
        if value is not None and value < 1:
            problems.append(f"{name} ({value}) must be at least 1; set it to 1 or more")
    if seed < 0:
        problems.append(f"seed ({seed}) must be at least 0; choose another seed")
    if problems:
        raise ConfigError(problems)


def _expected(files: list[PackedFile], slots: list[int], sizes: list[int], unit: Unit, end: float) -> int:
    """About how many tokens there will be."""
    if unit == "tokens":
        return math.ceil(end * sum(slots))
    return math.ceil(sum(end * its * one.num_tokens / size for one, its, size in zip(files, slots, sizes, strict=True)))


class _Stream:
    """The documents of one file, epoch after epoch, each with its turn: the next one is always that of least turn.

    A document's turn is what was taken from the file before it, in units of the file's slots.
    """

    def __init__(
        self, packed: PackedFile, path: Path, slots: int, unit: Unit, key: str, memory_mib: int, room: int
    ) -> None:
        self.packed = packed
        self.documents = self.tokens = 0
        self._path, self._slots, self._unit, self._key, self._memory_mib = path, slots, unit, key, memory_mib
        per_token = packed.header.token_width + packed.has_loss_mask + 16
        self._fits = packed.num_tokens * per_token + 64 * packed.num_documents <= room
        self._epoch = -1
        self._tokens: Ids = packed.tokens
        self._trained: Callable[[int, int], Mask] = packed.trained
        self._offsets: Numbers = packed.document_offsets
        self._next = packed.num_documents  # of the documents of this epoch
        self._size = packed.num_tokens if unit == "tokens" else packed.num_documents
        self._before = -self._size  # what was taken before this epoch

    @property
    def tokens_per_turn(self) -> float:
        """About how many tokens one unit of turns takes."""
        return self._slots * self.packed.num_tokens / self._size

    def _begin_epoch(self) -> None:
        self._epoch += 1
        digest = hashlib.blake2b(f"{self._key} {self._epoch}".encode(), digest_size=8).digest()
        seed = int.from_bytes(digest, "big") >> 1
        if self._fits:
            self._tokens, self._offsets, mask = shuffled_in_memory(self.packed, seed)
            self._trained = self.packed.trained if mask is None else lambda start, stop: mask[start:stop]
        else:
            shuffle(self.packed.path, self._path, seed=seed, memory_mib=self._memory_mib, overwrite=True)
            shuffled = PackedFile(self._path)
            self._tokens, self._offsets, self._trained = shuffled.tokens, shuffled.document_offsets, shuffled.trained
        self._next = 0
        self._before += self._size

    def take(self, until: float) -> Iterator[tuple[Ids, Mask, Numbers, Turns]]:
        """Tokens, whether each is trained, lengths and turns of the next documents before `until`, epoch by epoch."""
        while True:
            if self._next == self.packed.num_documents:
                if (self._before + self._size) / self._slots >= until:
                    return
                self._begin_epoch()
            offsets, first = self._offsets, self._next
            room = until * self._slots - self._before
            room += 2 + 1e-9 * abs(room)  # a little too much: what counts is the quotient that documents are sorted by
            if self._unit == "tokens":
                last = int(np.searchsorted(offsets[:-1], room, side="left"))
                # empty documents at the end have the turn of the last token: it is still of this epoch
                taken = np.minimum(offsets[first:last], self.packed.num_tokens - 1)
            else:
                last = min(math.ceil(max(room, 0)), self.packed.num_documents)
                taken = np.arange(first, last)
            turns = (self._before + taken) / self._slots
            last = first + int(np.searchsorted(turns, until, side="left"))
            if last <= first:
                return
            part = np.asarray(offsets[first : last + 1], np.int64)
            self._next = last
            ids, trained = self._tokens[part[0] : part[-1]], self._trained(int(part[0]), int(part[-1]))
            yield ids, trained, np.diff(part), turns[: last - first]

    def count(self, lengths: Numbers) -> None:
        """Note documents that were written."""
        self.documents += len(lengths)
        self.tokens += int(lengths.sum())

    def summary(self, share: float) -> MixedSource:
        """What was taken."""
        epochs = self.documents / self.packed.num_documents
        return MixedSource(self.packed.path, share, self.documents, self.tokens, epochs)


def _in_turn(streams: list[_Stream], end: float, num_tokens: int | None) -> Iterator[tuple[Ids, Mask, Numbers]]:
    """Tokens, whether each is trained, and lengths of documents in their turns, in batches of about BATCH_TOKENS."""
    at_once = pieces.BATCH_TOKENS if num_tokens is None else min(pieces.BATCH_TOKENS, num_tokens)
    per_batch = at_once / sum(stream.tokens_per_turn for stream in streams)
    written, until = 0, 0.0
    while until < end and (num_tokens is None or written < num_tokens):
        until = min(until + per_batch, end)
        parts = [(number, *part) for number, stream in enumerate(streams) for part in stream.take(until)]
        if not parts:
            continue
        of_stream = np.concatenate([np.full(len(lengths), number) for number, _, _, lengths, _ in parts])
        lengths = np.concatenate([one for *_, one, _ in parts])
        # a stable sort: of equal turns the first file's comes first
        order = np.argsort(np.concatenate([turns for *_, turns in parts]), kind="stable")
        if num_tokens is not None:
            ends = written + np.cumsum(lengths[order])
            order = order[: int(np.searchsorted(ends, num_tokens, side="left")) + 1]
        for number, stream in enumerate(streams):
            stream.count(lengths[order[of_stream[order] == number]])
        width = max(ids.itemsize for _, ids, *_ in parts)
        tokens = np.concatenate([ids.astype(f"<u{width}", copy=False) for _, ids, *_ in parts])
        trained = np.concatenate([mask for _, _, mask, *_ in parts])
        starts = np.cumsum(lengths) - lengths
        found, mask = (gathered(array, starts[order], lengths[order]) for array in (tokens, trained))
        written += len(found)
        yield found, mask, lengths[order]


def _bytes_of_text(streams: list[_Stream]) -> int:
    """UTF-8 bytes of what was taken, where whole files were; else it is not known, and 0."""
    rounds = [divmod(stream.documents, stream.packed.num_documents) for stream in streams]
    sizes = [stream.packed.num_bytes_of_text for stream in streams]
    if any(rest for _, rest in rounds) or not all(sizes):
        return 0
    return sum(times * size for (times, _), size in zip(rounds, sizes, strict=True))
