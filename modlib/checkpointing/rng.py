"""The state of every random generator of this process, as JSON."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch

from modlib.checkpointing.plain import decode, encode


def capture_rng() -> dict[str, Any]:
    """The states of Python's, numpy's (global) and torch's (CPU and each visible GPU) generators, JSON-able."""
    state: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": _numpy_state(),
        "torch": torch.get_rng_state().numpy().tobytes(),
    }
    if torch.cuda.is_available():
        state["cuda"] = [generator.numpy().tobytes() for generator in torch.cuda.get_rng_state_all()]
    encoded: dict[str, Any] = encode(state, "rng")
    return encoded


def restore_rng(state: dict[str, Any]) -> None:
    """Set every generator to the states `capture_rng` returned.

    GPU states are restored only where this process sees as many GPUs as the one that saved them.
    """
    state = decode(state)
    random.setstate(state["python"])
    name, keys, position, has_gauss, cached_gaussian = state["numpy"]
    np.random.set_state((name, np.frombuffer(keys, dtype=np.uint32), position, has_gauss, cached_gaussian))
    torch.set_rng_state(_byte_tensor(state["torch"]))
    generators = state.get("cuda", [])
    if torch.cuda.is_available() and len(generators) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([_byte_tensor(generator) for generator in generators])


def _numpy_state() -> tuple[str, bytes, int, int, float]:
    name, keys, position, has_gauss, cached_gaussian = np.random.get_state(legacy=True)  # type: ignore[misc]
    return str(name), np.asarray(keys).tobytes(), int(position), int(has_gauss), float(cached_gaussian)


def _byte_tensor(data: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)
