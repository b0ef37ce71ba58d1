"""A packed file to count, and a checkpoint that says how far its run was."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from torch import nn

from modlib.checkpointing.writing import save
from modlib.data.packed.writer import PackedFileWriter


def make(folder: Path) -> None:
    """Write loading.packed and loading/step-00000007."""
    with PackedFileWriter(folder / "loading.packed", vocab_size=64) as writer:
        writer.write(np.arange(200) % 64)
    save(folder / "loading", step=7, model=nn.Linear(2, 2), extra={"step": 7, "tokens": 7 * 64})
