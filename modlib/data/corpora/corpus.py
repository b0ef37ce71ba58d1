"""Built-in corpora by name; every other name is the path of a packed file."""

from __future__ import annotations

import difflib
import json
import logging
import os
import secrets
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypedDict

from modlib.data.cache import cache_folders, one_at_a_time, trusted, writable_cache
from modlib.data.corpora import stdlib_corpus
from modlib.data.corpora.stdlib_corpus import CorpusSummary, SourceFile
from modlib.data.packed import shards
from modlib.data.packed.file import PackedFile
from modlib.data.text.tokenizer_fingerprint import tokenizer_fingerprint
from modlib.runtime import durable
from modlib.runtime.errors import ConfigError, DataError
from modlib.runtime.hub_names import hub_hint
from modlib.runtime.json_files import JSONError, read_bytes, read_json

logger = logging.getLogger("modlib")

NAMES = tuple(f"stdlib:{split}" for split in stdlib_corpus.SPLITS)
"""Every corpus there is."""

Told = Callable[[str], None]
"""Called with one line per stage."""


def prepare(name_or_path: str | os.PathLike[str], progress: Told | None = None) -> Path:
    """The packed file of a corpus, made on first use and kept; or the path itself, if that is what was given.

    A corpus is kept by the hash of its text, under $MODLIB_CACHE or ~/.cache/modlib. Finding it again reads no source
    file. Any number of processes may call this at once: one builds, the others wait.

    Args:
        name_or_path: One of NAMES, or an existing packed file.
        progress: Called with one line per stage of building; None logs them.

    Raises:
        ConfigError: Neither a corpus nor an existing file, or a pattern.
        DataError: Building failed, or no cache folder can be written.
    """
    split = _split(name_or_path)
    if shards.is_pattern(name_or_path):
        raise ConfigError(
            f"path ('{name_or_path}') must be one packed file; for windows from all that match take @PackedShards "
            "(data/packed_shards.gin), for one file of them modlib data merge"
        )
    if split is None:
        return Path(name_or_path)
    files = stdlib_corpus.list_sources(stdlib_corpus.library_root())
    folder = _find(files)
    if folder is None or not _is_sound(folder, split):
        folder = _build(files, progress or logger.info)
    return folder / f"{split}.packed"


def open_packed(name_or_path: str | os.PathLike[str]) -> PackedFile:
    """The packed file of a path, or of a corpus, which is made if need be.

    Raises:
        ConfigError: There is no such file; or it begins as a corpus does, and is none.
        DataError: The file is damaged.
    """
    name = os.fspath(name_or_path)
    named = name.startswith("stdlib:") and not os.path.exists(name)
    if not named and not os.path.exists(name):
        hint = hub_hint(name, "dataset")
        raise ConfigError(f"{name} cannot be opened: No such file or directory; check the path{hint}")
    return PackedFile(prepare(name) if named else name_or_path)


def resolve(name_or_path: str | os.PathLike[str]) -> Path | None:
    """The packed file if it is there now; None for a corpus that `prepare` would have to make first. Writes nothing.

    Raises:
        ConfigError: Neither a corpus nor an existing file.
    """
    split = _split(name_or_path)
    if split is None:
        return Path(name_or_path)
    folder = _find(stdlib_corpus.list_sources(stdlib_corpus.library_root()))
    return None if folder is None else folder / f"{split}.packed"


def is_prepared(name_or_path: str | os.PathLike[str]) -> bool:
    """Whether `prepare` would return at once.

    Raises:
        ConfigError: Neither a corpus nor an existing file.
    """
    return resolve(name_or_path) is not None


def describe(name_or_path: str | os.PathLike[str]) -> CorpusSummary | None:
    """How a corpus was made; None when it is not made yet, or for the path of a packed file."""
    split = _split(name_or_path)
    path = resolve(name_or_path)
    return None if split is None or path is None else CorpusSummary.read(path.with_name("corpus.json"))


def _split(name_or_path: str | os.PathLike[str]) -> str | None:
    """The split a corpus name asks for; None for an existing file, or a pattern that matches some."""
    name = os.fspath(name_or_path)
    if name in NAMES:
        return name.partition(":")[2]
    path = Path(name)
    if path.is_file():
        return None
    if shards.is_pattern(name):
        shards.matching(name)
        return None
    if path.is_dir():
        inside = sorted(entry.name for entry in path.glob("*.packed"))
        raise ConfigError(
            f"path ('{name}') must be a packed file, not a folder; "
            + (f"name a file in it: {', '.join(inside[:5])}" if inside else "there is no .packed file in it")
        )
    neighbours = [str(entry) for entry in path.parent.glob("*") if entry.is_file()] if path.parent.is_dir() else []
    close = difflib.get_close_matches(name, [*NAMES, *neighbours], n=1)
    remedy = f"did you mean '{close[0]}'?" if close else f"there is no file {path.absolute()}"
    remedy += hub_hint(name, "dataset")
    raise ConfigError(f"path ('{name}') must be a corpus ({', '.join(NAMES)}) or an existing packed file; {remedy}")


def _find(files: Sequence[SourceFile]) -> Path | None:
    """The folder of the corpus made from these very files, without reading them."""
    key = stdlib_corpus.listing_key(files)
    for cache in cache_folders():
        try:
            folder = _folder(cache, read_json(_pointer(cache, key), _Pointer)["content"])
        except JSONError:
            continue
        if trusted(cache) and (folder / "corpus.json").is_file():
            return folder
    return None


class _Pointer(TypedDict):
    """The file that leads from a listing of the sources to the corpus made from them."""

    content: str


def _pointer(cache: Path, key: str) -> Path:
    return cache / "corpora" / f"stdlib-files-{key[:16]}.json"


def _folder(cache: Path, content: str) -> Path:
    return cache / "corpora" / f"stdlib-{content[:16]}"


def _is_sound(folder: Path, split: str) -> bool:
    """Whether a split, its tokenizer and the corpus's description are what was made."""
    try:
        packed = PackedFile(folder / f"{split}.packed")
        packed.verify()
        made_by = tokenizer_fingerprint(read_bytes(folder / "tokenizer.json").decode())
        if made_by != packed.tokenizer_fingerprint:
            raise DataError(f"{folder / 'tokenizer.json'} is not the tokenizer that made {packed.path}")
        CorpusSummary.read(folder / "corpus.json")
        return True
    except (OSError, ValueError, KeyError, TypeError) as error:  # DataError and JSONError are ValueErrors
        logger.warning("cached corpus is damaged and is made again: %s", error)
        return False


def _build(files: Sequence[SourceFile], progress: Told) -> Path:
    cache = writable_cache()
    corpora = cache / "corpora"
    try:
        corpora.mkdir(exist_ok=True)
        with one_at_a_time(
            corpora / "stdlib.lock", lambda: progress("waiting for another process that makes the corpus")
        ):
            return _build_or_take(cache, files, progress)
    except OSError as error:
        raise DataError(
            f"corpus cannot be written to {corpora}: {error.strerror or error}; free space or set MODLIB_CACHE"
        ) from error


def _build_or_take(cache: Path, files: Sequence[SourceFile], progress: Told) -> Path:
    """Build aside and rename; take what is there if these texts were packed before, by whomever."""
    started = time.perf_counter()
    size = sum(file.num_bytes for file in files) / 1e6
    progress(f"reading {len(files)} source files of the standard library ({size:.1f} MB)")
    sources = stdlib_corpus.read_sources(stdlib_corpus.library_root(), files)
    folder = _folder(cache, sources.content_hash)
    if not (folder / "corpus.json").is_file() or not all(_is_sound(folder, split) for split in stdlib_corpus.SPLITS):
        aside = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.tmp")
        aside.mkdir()
        try:
            summary = stdlib_corpus.build(aside, sources, progress)
            _put(aside, folder)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
        counts = ", ".join(
            f"{split} {part.documents:,} documents / {part.tokens:,} tokens" for split, part in summary.splits.items()
        )
        skipped = f"; {len(summary.skipped)} files skipped, listed in corpus.json" if summary.skipped else ""
        progress(f"corpus ready in {time.perf_counter() - started:.1f} s: {counts}{skipped} ({folder})")
    pointer = _pointer(cache, stdlib_corpus.listing_key(files))
    durable.atomic_write_text(pointer, json.dumps({"content": sources.content_hash, "files": len(files)}))
    return folder


def _put(aside: Path, folder: Path) -> None:
    """Move a finished folder to its name. Whoever comes second, where locks do not work, takes the first one's."""
    try:
        os.rename(aside, folder)
    except OSError:
        if (folder / "corpus.json").is_file() and all(_is_sound(folder, split) for split in stdlib_corpus.SPLITS):
            return
        damaged = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.damaged")
        os.rename(folder, damaged)
        os.rename(aside, folder)
        shutil.rmtree(damaged, ignore_errors=True)
    durable.fsync_directory(folder.parent)
