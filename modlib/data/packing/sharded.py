"""One output of a packing: a file, or shards that are filled one after the other."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from modlib.data.packed.file import PackedFile
from modlib.data.packed.header import PackedHeader
from modlib.data.packed.shards import shard_path, shards_of
from modlib.data.packed.writer import PackedFileWriter
from modlib.data.packing.block_encoder import EncodedPart

State = Sequence[Mapping[str, int]]
"""What was written of each shard, the last one open; what `PackedFileWriter.checkpoint` says of each."""


class PackOutput:
    """Takes documents, in order; a shard is closed when the next document does not fit.

    So the shards follow from the documents alone, and merged they are the file that one output would have been. A
    document of more than shard_tokens tokens is a shard of its own. How many shards there are is known in the end, and
    with it their names: until then none of them has a header.

    Args:
        path: The file to make; with shards, what they are named after.
        folder: Where unfinished files are kept.
        number: Of this output among those of the packing.
        shard_tokens: Most tokens per shard; None makes one file.
        new_writer: `PackedFileWriter` with all that the shards have in common.
        state: What `checkpoint` returned, to go on from there; None to begin.
        finished: Whether that was all: then only `finish` may be called.
    """

    def __init__(
        self,
        path: Path,
        folder: Path,
        number: int,
        shard_tokens: int | None,
        new_writer: Callable[..., PackedFileWriter],
        state: State | None,
        finished: bool,
    ) -> None:
        self.path = path
        self._folder, self._number, self._shard_tokens, self._new_writer = folder, number, shard_tokens, new_writer
        self._full = [dict(one) for one in state or ()]
        self._finished = finished
        self._writer: PackedFileWriter | None = None
        if not finished:
            last = self._full.pop() if self._full else None
            self._writer = self._open(len(self._full), last)

    def _partial(self, shard: int) -> Path:
        name = f"{self._number}.tokens" if self._shard_tokens is None else f"{self._number}-{shard:05d}.tokens"
        return self._folder / name

    def _open(self, shard: int, state: Mapping[str, int] | None) -> PackedFileWriter:
        return self._new_writer(self.path, overwrite=True, partial=self._partial(shard), state=state)

    def write(self, part: EncodedPart) -> None:
        """Append documents."""
        assert self._writer is not None
        if self._shard_tokens is None:
            self._writer.write_documents(part.tokens, part.lengths, int(part.bytes_of_text.sum()), part.trained)
            return
        ends = np.cumsum(part.lengths)
        first = start = 0
        while first < len(ends):
            room = start + self._shard_tokens - self._writer.num_tokens
            behind = int(np.searchsorted(ends, room, side="right"))
            if behind <= first:
                if self._writer.num_documents:
                    self._next_shard()
                    continue
                behind = first + 1
            end = int(ends[behind - 1])
            num_bytes = int(part.bytes_of_text[first:behind].sum())
            trained = None if part.trained is None else part.trained[start:end]
            self._writer.write_documents(part.tokens[start:end], part.lengths[first:behind], num_bytes, trained)
            first, start = behind, end

    def _next_shard(self) -> None:
        assert self._writer is not None
        self._full.append(self._writer.checkpoint())
        self._writer.abort()  # closes it; what was written stays
        self._writer = self._open(len(self._full), None)

    def checkpoint(self) -> list[dict[str, int]]:
        """Bring what was written to the disk; what is needed to go on."""
        assert self._writer is not None
        return [*self._full, self._writer.checkpoint()]

    def counted(self, what: str) -> int:
        """num_documents or num_tokens written so far."""
        own = 0 if self._writer is None else int(getattr(self._writer, what))
        return own + sum(one[what] for one in self._full)

    def finish(self, info: Mapping[str, Any]) -> dict[Path, PackedHeader]:
        """Put the file or all shards in their places.

        Args:
            info: For the headers.
        """
        count = len(self._full) + (self._writer is not None)
        names = [self.path] if self._shard_tokens is None else [shard_path(self.path, n, count) for n in range(count)]
        for old in shards_of(self.path) if self._shard_tokens is not None else ():
            if old not in names:  # first, so that there never are those of two packings
                old.unlink()
        headers = {}
        for number, name in enumerate(names):
            if self._finished and not self._partial(number).exists():  # put there before the work was cut off
                headers[name] = PackedFile(name).header
                continue
            full = number < len(self._full)
            writer = self._open(number, self._full[number]) if full else self._writer
            assert writer is not None
            writer.path = name
            writer.info = dict(info) | ({} if self._shard_tokens is None else {"shard": [number, count]})
            writer.commit()
            assert writer.header is not None
            headers[name] = writer.header
        return headers
