"""Packed files in several pieces: how the pieces are named, and how to find all of them."""

from __future__ import annotations

import glob
import os
import re
from pathlib import Path

from modlib.runtime.errors import ConfigError, DataError

_SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d{5,})-of-(?P<count>\d{5,})")


def shard_path(path: Path, number: int, count: int) -> Path:
    """One shard of a file: `books.packed` -> `books-00003-of-00008.packed`."""
    return path.with_name(f"{path.stem}-{number:05d}-of-{count:05d}{path.suffix}")


def unsharded(path: Path) -> Path:
    """The name that the shards of a file share, `books-00003-of-00008.packed` -> `books.packed`; others stay."""
    found = _SHARD.fullmatch(path.stem)
    return path if found is None else path.with_name(f"{found['stem']}{path.suffix}")


def shards_of(path: Path) -> list[Path]:
    """The shards of a file that are there, of whatever count, by name."""
    if not path.parent.is_dir():
        return []
    return sorted(one for one in path.parent.iterdir() if one != path and unsharded(one) == path)


def is_pattern(name: str | os.PathLike[str]) -> bool:
    """Whether a name stands for the files it matches; a file that is called like that is itself."""
    return glob.has_magic(os.fspath(name)) and not os.path.exists(name)


def matching(pattern: str | os.PathLike[str]) -> list[Path]:
    """The files that a pattern such as `books-*.packed` matches, ordered by path.

    Raises:
        ConfigError: None does.
        DataError: They are some of the shards of a file and not all, or shards of one file with different counts.
    """
    found = sorted(Path(name) for name in glob.glob(os.fspath(pattern), recursive=True) if os.path.isfile(name))
    if not found:
        raise ConfigError(f"path ('{pattern}') must match a packed file; it matches none in {Path.cwd()}")
    numbers: dict[tuple[Path, int], set[int]] = {}
    counts: dict[Path, int] = {}
    for path in found:
        if (shard := _SHARD.fullmatch(path.stem)) is None:
            continue
        whole, count = unsharded(path), int(shard["count"])
        numbers.setdefault((whole, count), set()).add(int(shard["number"]))
        if counts.setdefault(whole, count) != count:
            raise DataError(
                f"shards of {whole} that '{pattern}' matches must be of one packing; there are some of "
                f"{counts[whole]} and some of {count}: remove those of the older one"
            )
    for (whole, count), there in numbers.items():
        if missing := sorted(set(range(count)) - there):
            raise DataError(
                f"shards of {whole} that '{pattern}' matches ({len(there)}) must be all {count}; "
                f"{shard_path(whole, missing[0], count).name} is missing: copy it, or pack again"
            )
    return found
