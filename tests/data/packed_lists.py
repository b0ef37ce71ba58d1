"""Packed files as lists of documents, for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from modlib.data.inspecting.verify import verify
from modlib.data.packed.file import PackedFile
from modlib.data.packed.writer import PackedFileWriter

documents_of_ids = st.lists(st.lists(st.integers(0, 299), max_size=7), max_size=20)


def write(path: Path, documents: list[list[int]], **settings: Any) -> Path:
    """Write documents; any id is below 300 unless vocab_size is given. A loss mask lets multiples of 3 count."""
    with PackedFileWriter(path, overwrite=True, **({"vocab_size": 300} | settings)) as writer:
        for document in documents:
            trained = [token % 3 == 0 for token in document] if writer.has_loss_mask else None
            writer.write(document, len(document), trained)
    return path


def read(path: Path) -> list[list[int]]:
    """The documents of a file that has nothing wrong in it, nor in its loss mask if it has one."""
    verify(path)
    packed = PackedFile(path)
    if packed.has_loss_mask:
        assert packed.trained(0, packed.num_tokens).tolist() == (packed.tokens % 3 == 0).tolist()
    return [packed.document(number).tolist() for number in range(packed.num_documents)]
