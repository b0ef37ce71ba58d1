"""`modlib data corpus`: text without a download."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from enum import StrEnum
from itertools import islice
from pathlib import Path
from typing import Annotated

import typer

from modlib.cli.data_made import NOT_MADE
from modlib.cli.report import reported
from modlib.cli.table import print_table
from modlib.runtime.errors import ConfigError, DataError
from modlib.runtime.units import format_bytes


class Kind(StrEnum):
    """What there is."""

    stdlib = "stdlib"
    markov = "markov"
    arithmetic = "arithmetic"
    copy = "copy"


def command(
    kind: Annotated[Kind, typer.Argument(help="stdlib: sources of Python's library; the others are made by rules.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A JSONL file to write.")],
    documents: Annotated[int, typer.Option("--documents", help="How many; stdlib has what it has.")] = 1000,
    length: Annotated[int, typer.Option("--length", help="Characters of each, about.")] = 1000,
    seed: Annotated[int, typer.Option("--seed", help="The same seed makes the same text.")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing file.")] = False,
) -> Path:
    """Write text as JSONL: {"text": ...} a line."""
    with reported(NOT_MADE):
        for name, value in (("documents", documents), ("length", length)):
            if value < 1:
                raise ConfigError(f"{name} ({value}) must be at least 1; set it to 1 or more")
        from modlib.data.outputs import exists

        if out.exists() and not overwrite:
            raise exists(out)
        texts, about, bits = _texts(kind, documents, length, seed)
        count, size = _write(out, texts)
    print_table(["file", "documents", "text"], [[str(out), f"{count:,}", format_bytes(size)]])
    best = "" if bits is None else f"; no model does better than {bits:.4f} bits per character in the long run"
    print(f"{about}{best}", file=sys.stderr)
    return out


def _texts(kind: Kind, documents: int, length: int, seed: int) -> tuple[Iterator[str], str, float | None]:
    if kind is Kind.stdlib:
        from modlib.data import stdlib_corpus

        root = stdlib_corpus.library_root()
        sources = stdlib_corpus.read_sources(root, stdlib_corpus.list_sources(root))
        return (text for _, text in sources.documents), f"the .py files below {root}, ordered by path", None
    from modlib.data.synthetic import KINDS

    made = KINDS[kind.value](seed, length)
    return islice(made.documents, documents), made.about, made.bits_per_character


def _write(out: Path, texts: Iterator[str]) -> tuple[int, int]:
    """Written aside and renamed: the file is there whole or not at all."""
    aside = out.with_name(f".{out.name}.tmp")
    count = size = 0
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with open(aside, "w", encoding="utf-8") as file:
            for text in texts:
                file.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
                count += 1
                size += len(text.encode("utf-8"))
        aside.replace(out)
    except OSError as error:
        raise DataError(f"{out} cannot be written: {error.strerror or error}; choose another folder") from error
    finally:
        aside.unlink(missing_ok=True)
    return count, size
