"""What a run's numbers depend on beside its config and code, written down so that the run can be repeated."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from modlib.runtime.hardware import cpu_name
from modlib.training.contents import files_of


def surroundings(data: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of run.json: the data of training and of every evaluator, the device and its threads, where it ran.

    Args:
        data: Every dataset by its use, see `data_of`; compared with the files already.
    """
    files = files_of(data)
    return {
        "data": [{"use": use, **_identity(each), "files": files[use]} for use, each in data.items()],
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else cpu_name(),
        "num_threads": torch.get_num_threads(),
        "working_directory": str(Path.cwd()),
    }


def _identity(dataset: Any) -> dict[str, str]:
    """A dataset's name and fingerprint."""
    return {
        "name": str(getattr(dataset, "name", type(dataset).__name__)),
        "fingerprint": str(getattr(dataset, "fingerprint", "")),
    }
