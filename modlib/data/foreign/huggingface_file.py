"""Datasets that HuggingFace's `save_to_disk` wrote: a column with a list of token ids per document."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from modlib.data.foreign.foreign_tokens import (
    ForeignTokens,
    Ids,
    Numbers,
)
from modlib.data.text.saved_dataset import arrow_files
from modlib.runtime.errors import ConfigError, DataError

_COLUMNS = ("input_ids", "tokens")
"""Tried in this order when no column is named."""
_TEXT = (
    "export text with to_parquet('text.parquet') of the dataset and pack that: modlib data pack text.parquet OUT "
    "--field COLUMN --tokenizer ..."
)


def read_huggingface(path: str | os.PathLike[str], *, column: str | None = None) -> ForeignTokens:
    """Documents of a folder from `save_to_disk`; read batch by batch, by pyarrow.

    Args:
        path: The folder of one split.
        column: Holds a list of ids per row; None takes input_ids or tokens.

    Raises:
        ConfigError: No such folder, no such column, or pyarrow is not installed.
        DataError: It is no dataset, or is damaged.
    """
    try:
        import pyarrow  # noqa: F401
    except ImportError as error:
        raise ConfigError(f"{path} is read by pyarrow, which is not installed; pip install 'modlib[data]'") from error
    files = arrow_files(Path(path))

    def batches() -> Iterator[tuple[Ids, Numbers]]:
        row = 0
        for file in files:
            for array, name in _columns(file, column):
                yield _checked(array, f"column {name} of {file}", row)
                row += len(array)

    return ForeignTokens(files, 0, batches)


def _columns(file: Path, wanted: str | None) -> Iterator[tuple[Any, str]]:
    import pyarrow

    try:
        with pyarrow.memory_map(str(file)) as source, pyarrow.ipc.open_stream(source) as reader:
            names = reader.schema.names
            name = wanted or next((one for one in _COLUMNS if one in names), None)
            if name is None or name not in names:
                raise ConfigError(
                    f"column ({wanted or ' or '.join(_COLUMNS)}) must be one of {file}, which has {', '.join(names)}; "
                    f"name one with lists of ids; {_TEXT}"
                )
            for batch in reader:
                yield batch.column(names.index(name)), name
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(f"{file} must be an Arrow stream, as save_to_disk writes it; {error}") from error


def _checked(array: Any, what: str, row: int) -> tuple[Ids, Numbers]:
    import pyarrow

    types = pyarrow.types
    kind = array.type
    is_list = types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)
    if not is_list or not types.is_integer(kind.value_type):
        raise DataError(f"{what} ({kind}) must hold lists of integers; {_TEXT}")
    if array.null_count:
        missing = int(np.flatnonzero(array.is_null().to_numpy(zero_copy_only=False))[0])
        raise DataError(f"row {row + missing} of {what} must be a list of ids; it is null")
    values = array.flatten()
    if values.null_count:
        raise DataError(f"rows {row} to {row + len(array) - 1} of {what} must hold ids; one is null")
    return values.to_numpy(zero_copy_only=False), array.value_lengths().to_numpy(zero_copy_only=False).astype(np.int64)
