"""Packed files."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from modlib.data.packed.writer import PackedFileWriter


def make(folder: Path) -> None:
    """Write core.packed, 200 tokens below 64, and documents.packed, three documents with ends and bytes."""
    with PackedFileWriter(folder / "core.packed", vocab_size=64) as writer:
        writer.write((np.arange(200) % 64).astype(np.uint16), num_bytes_of_text=200)
    with PackedFileWriter(folder / "documents.packed", vocab_size=64, end_of_document_id=0) as writer:
        for length in (1, 5, 40):
            writer.write([*range(1, length + 1), 0], num_bytes_of_text=2 * length)
