"""What a run's numbers depend on beside its config and code, written down so that the run can be repeated."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from modlib.runtime.hardware import cpu_name
from modlib.training.evaluation import Evaluator


def surroundings(dataset: Any, evaluators: Sequence[Evaluator]) -> dict[str, Any]:
    """Fields of run.json: the data of training and of every evaluator, the device and its threads, where it ran.

    Args:
        dataset: The training data.
        evaluators: The run's; each has its own data.
    """
    used = [("train", dataset), *((f"val/{one.name}", one.dataset) for one in evaluators if hasattr(one, "dataset"))]
    return {
        "data": [{"use": use, **_identity(each)} for use, each in used],
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else cpu_name(),
        "num_threads": torch.get_num_threads(),
        "working_directory": str(Path.cwd()),
    }


def _identity(dataset: Any) -> dict[str, Any]:
    """A dataset's name and fingerprint, and the packed files in it with the hash of their contents."""
    return {
        "name": str(getattr(dataset, "name", type(dataset).__name__)),
        "fingerprint": str(getattr(dataset, "fingerprint", "")),
        "files": [{"path": str(packed.path.absolute()), "sha256": packed.sha256} for packed in _packed(dataset)],
    }


def _packed(dataset: Any) -> Iterator[Any]:
    if hasattr(dataset, "packed"):
        yield dataset.packed
    for source in getattr(dataset, "sources", ()):
        yield from _packed(source)
