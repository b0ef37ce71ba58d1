"""Text without a download, as JSONL: the sources of Python's library, or texts made by rules."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal, get_args

from modlib.data.corpora import stdlib_corpus
from modlib.data.corpora.synthetic import KINDS
from modlib.data.packed.outputs import exists
from modlib.data.progress import Progress, no_progress
from modlib.runtime import durable
from modlib.runtime.errors import ConfigError, DataError

Kind = Literal["stdlib", "markov", "arithmetic", "copy"]


@dataclass(frozen=True)
class WrittenCorpus:
    """What was written.

    Args:
        documents: Lines of the file.
        num_bytes_of_text: UTF-8 bytes of all texts.
        about: What they are, for people.
        bits_per_character: No model does better in the long run; None where that is not known.
    """

    documents: int
    num_bytes_of_text: int
    about: str
    bits_per_character: float | None


def write_corpus(
    kind: Kind,
    out: str | os.PathLike[str],
    *,
    documents: int = 1000,
    length: int = 1000,
    seed: int = 0,
    overwrite: bool = False,
    progress: Progress = no_progress,
) -> WrittenCorpus:
    """Write text as JSONL, {"text": ...} a line; the file is there whole or not at all.

    Args:
        kind: "stdlib": the sources of Python's library; the others are made by the rules of
            `modlib.data.corpora.synthetic`.
        out: The file to write.
        documents: How many; stdlib has what it has.
        length: Characters of each, about; not for stdlib.
        seed: The same seed makes the same text; not for stdlib.
        overwrite: Whether an existing file is replaced.
        progress: Called with the documents done, and all of them.

    Raises:
        ConfigError: No such kind, or a number below 1.
        DataError: The file exists or cannot be written.
    """
    if kind not in get_args(Kind):
        raise ConfigError(f"kind ('{kind}') must be one of {', '.join(get_args(Kind))}; choose one of them")
    for name, value in (("documents", documents), ("length", length)):
        if value < 1:
            raise ConfigError(f"{name} ({value}) must be at least 1; set it to 1 or more")
    out = Path(out)
    if out.exists() and not overwrite:
        raise exists(out)
    texts: Iterable[str]
    if kind == "stdlib":
        root = stdlib_corpus.library_root()
        sources = stdlib_corpus.read_sources(root, stdlib_corpus.list_sources(root))
        texts, total = (text for _, text in sources.documents), len(sources.documents)
        about, bits = f"the .py files below {root}, ordered by path", None
    else:
        made = KINDS[kind](seed, length)
        texts, total = islice(made.documents, documents), documents
        about, bits = made.about, made.bits_per_character
    count, size = _write(out, texts, total, progress)
    return WrittenCorpus(count, size, about, bits)


def _write(out: Path, texts: Iterable[str], total: int, progress: Progress) -> tuple[int, int]:
    """Written aside and renamed."""
    aside = out.with_name(f".{out.name}.tmp")
    count = size = 0
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with open(aside, "w", encoding="utf-8") as file:
            for text in texts:
                file.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
                count += 1
                size += len(text.encode("utf-8"))
                progress(count, total)
        durable.rename(aside, out)
    except OSError as error:
        raise DataError(f"{out} cannot be written: {error.strerror or error}; choose another folder") from error
    finally:
        aside.unlink(missing_ok=True)
    return count, size
