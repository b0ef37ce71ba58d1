"""Files that a command makes: never one of those that it reads, and beside them no record of what was there before."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from modlib.data.packed.shards import unsharded
from modlib.runtime.errors import ConfigError
from modlib.runtime.json_files import JSONError, read_json


def require_not_read(outputs: Iterable[str | os.PathLike[str]], inputs: Iterable[str | os.PathLike[str]]) -> None:
    """Raise ConfigError when a file to make is one that is read, under whatever name: it could not be read again."""
    there = [(path, os.stat(path)) for path in inputs if os.path.exists(path)]
    for output in outputs:
        if not os.path.exists(output):
            continue
        status = os.stat(output)
        for path, its in there:
            if os.path.samestat(status, its):
                raise ConfigError(
                    f"output ({output}) must not be an input ({path}): its bytes would be lost; choose another output, "
                    "and name it last"
                )


def exists(path: str | os.PathLike[str]) -> ConfigError:
    """The error for an output that is there and may not be replaced."""
    return ConfigError(f"{path} exists; choose another path, remove it, or pass --overwrite (overwrite=True in Python)")


def provenance_beside(path: str | os.PathLike[str]) -> Path:
    """Where it is written what a file was made from: `books.packed` -> `books.packed.provenance.json`."""
    return Path(path).with_name(f"{Path(path).name}.provenance.json")


def pack_record_beside(path: str | os.PathLike[str]) -> Path:
    """Where it is written how text was packed: `books.packed` -> `books.pack.json`."""
    return Path(path).with_name(f"{Path(path).stem}.pack.json")


def skipped_beside(path: str | os.PathLike[str]) -> Path:
    """Where the rows are listed that a packing left out: `books.packed` -> `books.packed.skipped.jsonl`."""
    return Path(path).with_name(f"{Path(path).name}.skipped.jsonl")


def remove_pack_record(path: str | os.PathLike[str]) -> None:
    """Remove what tells how text was packed into a file that is no longer there; not what tells of other files."""
    record = pack_record_beside(path)
    try:
        outputs = read_json(record, dict[str, Any])["outputs"]
    except (JSONError, KeyError):
        return
    if isinstance(outputs, dict) and list(outputs) == [Path(path).name]:
        record.unlink(missing_ok=True)
        skipped_beside(path).unlink(missing_ok=True)


def tokenizer_beside(path: Path) -> Path:
    """Where the tokenizer of a packed file is kept: `books.packed` -> `books.tokenizer.json`; shards share one."""
    return path.with_name(f"{unsharded(path).stem}.tokenizer.json")
