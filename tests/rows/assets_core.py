"""A packed file."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from modlib.data.packed.writer import PackedFileWriter


def make(folder: Path) -> None:
    """Write core.packed: 200 tokens below 64."""
    with PackedFileWriter(folder / "core.packed", vocab_size=64) as writer:
        writer.write((np.arange(200) % 64).astype(np.uint16), num_bytes_of_text=200)
