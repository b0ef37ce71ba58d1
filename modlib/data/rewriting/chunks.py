"""A packed token file as several: whole documents, in order."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from modlib.data.packed.file import PackedFile
from modlib.data.packed.header import PackedHeader
from modlib.data.packed.outputs import exists
from modlib.data.progress import Progress, no_progress
from modlib.data.rewriting import copying
from modlib.runtime.errors import ConfigError


def chunk(
    source: str | os.PathLike[str],
    prefix: str | os.PathLike[str],
    *,
    num_chunks: int | None = None,
    max_tokens: int | None = None,
    overwrite: bool = False,
    progress: Progress = no_progress,
) -> list[tuple[Path, PackedHeader]]:
    """Cut a file at ends of documents; the chunks, one after the other, are the file.

    How many bytes of text a chunk holds is not known, so its header says none, unless there is one chunk.

    Args:
        source: A packed file.
        prefix: Chunks are `<prefix>-00000-of-00004.packed` and so on.
        num_chunks: So many chunks, of about equal tokens; each has a document.
        max_tokens: Or as few chunks as hold at most so many tokens each; a longer document has a chunk of its own.
        overwrite: Whether existing files are replaced.
        progress: Called with the tokens done, and all of them.

    Returns:
        The files, in order.

    Raises:
        ConfigError: Not one of num_chunks and max_tokens, or a number below 1.
        DataError: Fewer documents than chunks, or a chunk exists.
    """
    if (num_chunks is None) == (max_tokens is None):
        raise ConfigError(
            f"num_chunks ({num_chunks}) and max_tokens ({max_tokens}) must be one alone; give --num_chunks N or "
            "--max_tokens N"
        )
    for name, value in (("num_chunks", num_chunks), ("max_tokens", max_tokens)):
        if value is not None and value < 1:
            raise ConfigError(f"{name} ({value}) must be at least 1; set it to 1 or more")
    packed = copying.open_plain(source)
    borders = _equal(packed, num_chunks) if num_chunks is not None else _filled(packed, max_tokens or 0)
    count = len(borders) - 1
    paths = [Path(f"{os.fspath(prefix)}-{number:05d}-of-{count:05d}.packed") for number in range(count)]
    if not overwrite and (there := [path for path in paths if path.exists()]):
        raise exists(there[0])
    options = {"num_chunks": num_chunks, "max_tokens": max_tokens}
    made = []
    done = 0

    def copied(tokens: int) -> None:
        nonlocal done
        done += tokens
        progress(done, packed.num_tokens)

    for number, path in enumerate(paths):
        with copying.writer_like(packed, path, overwrite=overwrite) as writer:
            of_text = packed.num_bytes_of_text if count == 1 else 0
            copying.copy_documents(packed, writer, borders[number], borders[number + 1], of_text, copied)
        assert writer.header is not None
        copying.copy_tokenizer(packed.path, path)
        documents = {"documents": [borders[number], borders[number + 1]]}
        copying.write_provenance(path, writer.header, "chunk", options | documents, [copying.described(packed)])
        made.append((path, writer.header))
    return made


def _equal(packed: PackedFile, num_chunks: int) -> list[int]:
    """The first document of each chunk, and the end: where the tokens are nearest to equal shares."""
    count = packed.num_documents
    if num_chunks > count:
        raise ConfigError(
            f"num_chunks ({num_chunks}) must be at most the {count} documents of {packed.path}; a document is not cut"
        )
    borders = [0]
    for number in range(1, num_chunks):
        wanted = packed.num_tokens * number // num_chunks
        border = int(np.searchsorted(packed.document_offsets, wanted))
        if border and wanted - packed.document_offsets[border - 1] < packed.document_offsets[border] - wanted:
            border -= 1
        borders.append(min(max(border, borders[-1] + 1), count - (num_chunks - number)))
    return [*borders, count]


def _filled(packed: PackedFile, max_tokens: int) -> list[int]:
    """The first document of each chunk, and the end: each chunk takes what fits, or one longer document."""
    offsets, count = packed.document_offsets, packed.num_documents
    borders = [0]
    while borders[-1] < count:
        first = borders[-1]
        behind = int(np.searchsorted(offsets, offsets[first] + max_tokens, side="right")) - 1
        borders.append(max(behind, first + 1))  # a longer document is not cut
    return borders if count else [0, 0]
