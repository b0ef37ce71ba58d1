"""The index of weights that are cut into several safetensors files."""

from __future__ import annotations

from pathlib import Path
from typing import TypedDict

from modlib.runtime.errors import CheckpointError
from modlib.runtime.json_files import JSONError, read_json


class WeightIndex(TypedDict):
    """What a safetensors index says: the file that holds each tensor."""

    weight_map: dict[str, str]


def indexed_files(index: Path) -> list[Path]:
    """The files that a safetensors index names, each once; all are in its own folder.

    Raises:
        CheckpointError: It is no such index.
    """
    try:
        names = sorted(set(read_json(index, WeightIndex)["weight_map"].values()))
    except JSONError as error:
        raise CheckpointError(f"{error}; its weight_map must say which file holds each tensor") from error
    if outside := [name for name in names if Path(name).name != name]:
        raise CheckpointError(
            f"file ('{outside[0]}') of {index} must be one of the same folder; take the whole folder from its maker"
        )
    return [index.parent / name for name in names]
