"""Which files a folder holds that `save_to_disk` of the datasets library wrote."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from modlib.runtime.errors import ConfigError, DataError
from modlib.runtime.hub_names import hub_hint
from modlib.runtime.json_files import JSONError, read_json

_STATE, _SPLITS = "state.json", "dataset_dict.json"


def is_saved_dataset(folder: Path) -> bool:
    """Whether a folder is one dataset or several splits that `save_to_disk` wrote."""
    return (folder / _STATE).is_file() or (folder / _SPLITS).is_file()


def arrow_files(folder: Path) -> list[Path]:
    """The Arrow streams of one split, in the order of its rows.

    Raises:
        ConfigError: No such folder, or it holds several splits.
        DataError: It is no such dataset, or its rows are not in order.
    """
    if not folder.is_dir():
        raise ConfigError(
            f"{folder} must be a folder that save_to_disk wrote; there is no such folder: check the path"
            f"{hub_hint(folder, 'dataset')}"
        )
    if (folder / _SPLITS).is_file():
        splits = _json(folder / _SPLITS).get("splits", [])
        raise ConfigError(f"{folder} ({len(splits)} splits) must be one split; name one of them: {', '.join(splits)}")
    if not (folder / _STATE).is_file():
        raise DataError(f"{folder} must be a folder that save_to_disk wrote; there is no state.json in it")
    state = _json(folder / _STATE)
    if state.get("_indices_data_files") or state.get("_indices_files"):
        raise DataError(f"{folder} must hold its rows in order; call flatten_indices() on it and save it again")
    names = [str(one.get("filename")) for one in state.get("_data_files") or ()]
    if not names or any(Path(name).name != name for name in names):
        raise DataError(f"data files in {folder / _STATE} ({names}) must be names of files in the folder")
    return [folder / name for name in names]


def _json(path: Path) -> dict[str, Any]:
    try:
        return read_json(path, dict[str, Any])
    except JSONError as error:
        raise DataError(f"{error}; it is no dataset of save_to_disk") from error
