"""Packed files as lists of documents, for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from modlib.data.packed_file import PackedFile
from modlib.data.packed_verify import verify
from modlib.data.packed_writer import PackedFileWriter

documents_of_ids = st.lists(st.lists(st.integers(0, 299), max_size=7), max_size=20)


def write(path: Path, documents: list[list[int]], **settings: Any) -> Path:
    """Write documents; any id is below 300 unless vocab_size is given."""
    with PackedFileWriter(path, overwrite=True, **({"vocab_size": 300} | settings)) as writer:
        for document in documents:
            writer.write(document, num_bytes_of_text=len(document))
    return path


def read(path: Path) -> list[list[int]]:
    """The documents of a file that has nothing wrong in it."""
    verify(path)
    packed = PackedFile(path)
    return [packed.document(number).tolist() for number in range(packed.num_documents)]
