"""Rows of Parquet and Arrow files, of the columns that are asked for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from modlib.data.text.fields import Field
from modlib.runtime.errors import ConfigError, DataError

_ROWS = 1024  # read at a time
_ARROW_FILE = b"ARROW1"

Rows = Iterator[tuple[list[Any], float]]
"""Some rows that follow each other, and the share of the file that is read with them."""


def parquet_rows(path: Path, field: Field, skip: int) -> Rows:
    """Rows of a Parquet file.

    Args:
        path: The file.
        field: Its column is read, and those beside it.
        skip: Rows to leave out at the beginning.

    Raises:
        DataError: The file lacks the column, or holds what pyarrow cannot read.
        EOFError: The file is damaged.
    """
    with (
        _explained(path, "Parquet") as pyarrow,
        pyarrow.parquet.ParquetFile(path, pre_buffer=False, buffer_size=1 << 20) as file,
    ):
        columns = _columns(path, file.schema_arrow.names, field)
        batches = file.iter_batches(_ROWS, columns=columns, use_threads=False)
        total, done = max(file.metadata.num_rows, 1), 0
        for batch in batches:
            kept = batch.slice(min(max(skip - done, 0), batch.num_rows))
            done += batch.num_rows
            if kept.num_rows:
                yield kept.to_pylist(), done / total


def arrow_rows(path: Path, field: Field, skip: int) -> Rows:
    """Rows of an Arrow file or stream, as the datasets library writes it; arguments and errors as of `parquet_rows`."""
    with _explained(path, "Arrow") as pyarrow, ExitStack() as stack:
        source = stack.enter_context(pyarrow.memory_map(str(path)))
        is_file = source.read(len(_ARROW_FILE)) == _ARROW_FILE
        source.seek(0)
        reader = stack.enter_context((pyarrow.ipc.open_file if is_file else pyarrow.ipc.open_stream)(source))
        columns = _columns(path, reader.schema.names, field)
        batches = (reader.get_batch(index) for index in range(reader.num_record_batches)) if is_file else reader
        done = 0
        for number, batch in enumerate(batches, 1):
            share = number / reader.num_record_batches if is_file else source.tell() / source.size()
            wanted = batch if columns is None else batch.select(columns)
            for start in range(0, batch.num_rows, _ROWS):
                piece = wanted.slice(start, _ROWS)
                kept = piece.slice(min(max(skip - done, 0), piece.num_rows))
                done += piece.num_rows
                if kept.num_rows:
                    yield kept.to_pylist(), share


def _columns(path: Path, names: Sequence[str], field: Field) -> list[str] | None:
    """The columns to read; None for all, where a function looks at whole rows."""
    if field.column is None:
        _require_one_of_each(path, names, names)
        return None
    # a column may be called a.b itself; a struct's part comes second
    name = field.whole if field.whole in names else field.column
    if name not in names:
        raise DataError(f"{path} must have a column '{name}'; it has {', '.join(names)}")
    columns = [name, *(beside for beside in field.beside if beside in names and beside != name)]
    _require_one_of_each(path, names, columns)
    return columns


def _require_one_of_each(path: Path, names: Sequence[str], wanted: Sequence[str]) -> None:
    for name in wanted:
        if (count := list(names).count(name)) > 1:
            raise DataError(f"{path} must have one column '{name}'; it has {count}: rename all but one")


@contextmanager
def _explained(path: Path, format: str) -> Iterator[Any]:
    """pyarrow; what it cannot do is told apart from what is wrong with the file."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ConfigError(f"reading {path} needs the package pyarrow; pip install 'modlib[data]'") from error
    try:
        yield pyarrow
    except (pyarrow.ArrowNotImplementedError, MemoryError) as error:
        what = "has not enough memory for it" if isinstance(error, MemoryError) else f"cannot read it ({error})"
        raise DataError(
            f"input ({path}) may be whole, but pyarrow {pyarrow.__version__} {what}; write it anew with fewer rows in "
            f"each {'row group' if format == 'Parquet' else 'batch'}, or as .jsonl"
        ) from error
    except (OSError, pyarrow.ArrowException, UnicodeDecodeError) as error:
        raise EOFError(str(error)) from error
