"""Seeds: one number for the run, independent streams derived from it by name."""

from __future__ import annotations

import hashlib
import random


def derive(seed: int, *names: str | int) -> int:
    """Return the seed of a named stream: a pure function of the run's seed and the names.

    Streams of different names are independent, and a new one changes none of the others. So each use takes its own
    (`derive(seed, "shuffle", epoch)`, `derive(seed, "rank", rank)`) instead of counting up from the run's seed.

    Args:
        seed: The run's seed; any integer.
        names: What the stream is for. The text "1" and the number 1 are different names.

    Returns:
        An integer in [0, 2**64), the same on every machine and Python version.
    """
    digest = hashlib.sha256()
    for part in (seed, *names):
        encoded = f"{type(part).__name__}:{part}".encode()
        digest.update(len(encoded).to_bytes(8, "little") + encoded)  # the length keeps ("ab",) and ("a", "b") apart
    return int.from_bytes(digest.digest()[:8], "little")


def seed_everything(seed: int) -> None:
    """Seed the global generators of Python, numpy and torch (all devices), as dropout and user code use them.

    Ranks that shall draw different numbers pass `derive(seed, "rank", rank)`. The data order and the initial weights
    of modlib do not use the global generators: they are functions of the run's seed alone.

    Args:
        seed: An integer in [0, 2**64).

    Raises:
        ValueError: The seed is out of range.
    """
    if not 0 <= seed < 2**64:
        raise ValueError(f"seed ({seed}) must be in [0, 2**64); choose another")
    import numpy
    import torch

    random.seed(seed)
    numpy.random.seed([seed & 0xFFFFFFFF, seed >> 32])
    torch.manual_seed(seed)  # seeds every CUDA device too
