"""`modlib data pack`: text to a packed file."""

from __future__ import annotations

import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from modlib.cli.progress_bar import progress_bar
from modlib.cli.report import reported
from modlib.cli.table import print_table
from modlib.runtime.errors import ConfigError
from modlib.runtime.units import counted, format_bytes, format_count, format_seconds

if TYPE_CHECKING:
    from modlib.data.packing.pack_record import PackSummary


class OnError(StrEnum):
    """What happens with a row that is no document."""

    fail = "fail"
    skip = "skip"


class Engine(StrEnum):
    """What tokenizes."""

    auto = "auto"
    fast = "fast"
    tokenizer = "tokenizer"


def command(
    paths: Annotated[
        list[str], typer.Argument(metavar="IN... OUT", help="Files, folders or patterns; then the output.")
    ],
    tokenizer: Annotated[
        str,
        typer.Option(
            "--tokenizer", metavar="FOLDER_OR_MODEL", help="A folder, tokenizer.json or .model file; or stdlib:train."
        ),
    ],
    field: Annotated[
        str | None,
        typer.Option(
            "--field", help="Where the text is: a.b[0].c, or module:function. Default: text, with --chat messages."
        ),
    ] = None,
    chat: Annotated[bool, typer.Option("--chat", help="Rows are conversations; the answers are trained.")] = False,
    chat_template: Annotated[
        Path | None,
        typer.Option("--chat_template", metavar="FILE", help="Jinja2. Default: the one in the tokenizer's folder."),
    ] = None,
    on_error: Annotated[OnError, typer.Option("--on_error", help="Rows that are no documents.")] = OnError.fail,
    workers: Annotated[int | None, typer.Option("--workers", help="Processes. Default: one per core.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where it was cut off.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace existing outputs.")] = False,
    split: Annotated[str | None, typer.Option("--split", help="Several outputs, by hash: train=0.9,test=0.1")] = None,
    shard_tokens: Annotated[
        int | None, typer.Option("--shard_tokens", help="Several files, each of at most so many tokens.")
    ] = None,
    end_of_document: Annotated[str | None, typer.Option("--end_of_document", help="Text of that token.")] = None,
    engine: Annotated[Engine, typer.Option("--engine", help="What tokenizes; the ids are the same.")] = Engine.auto,
) -> Path:
    """Tokenize text into a packed file, in order, losing nothing."""
    with reported(lambda: _kept(Path(paths[-1]))):
        if len(paths) < 2:
            raise ConfigError("paths (1) must be at least two: what to pack, and the output last")
        sys.path.insert(0, os.getcwd())  # for --field module:function
        from modlib.data.packing.pack import PackProgress, pack

        with progress_bar(f"packing {Path(paths[-1]).name}") as update:

            def show(now: PackProgress) -> None:
                bad = f", {now.bad_rows:,} left out" if now.bad_rows else ""
                note = f"{format_count(now.documents)} documents, {format_count(now.tokens)} tokens{bad}"
                update(now.bytes_read, now.bytes_total, note)

            summary = pack(
                paths[:-1],
                paths[-1],
                tokenizer,
                field=field,
                on_error=on_error.value,
                workers=workers,
                resume=resume,
                overwrite=overwrite,
                split=None if split is None else parse_split(split),
                shard_tokens=shard_tokens,
                end_of_document=end_of_document,
                engine=engine.value,
                chat=chat,
                chat_template=chat_template,
                progress=show,
            )
    _print(summary)
    return Path(paths[-1])


def _kept(out: Path) -> str:
    """What is true when Ctrl-C ended a packing."""
    from modlib.data.packing.journal import partial_folder, unfinished_tokens

    tokens = unfinished_tokens(partial_folder(out))
    if tokens is None:
        return "nothing is kept: work is brought to the disk every ten seconds, and nothing was yet"
    return f"{tokens:,} tokens, brought to the disk before, are kept: go on with --resume"


def parse_split(text: str) -> dict[str, float]:
    """`train=0.99,validation=0.01` as a dict.

    Raises:
        ConfigError: It is not written like this.
    """
    found: dict[str, float] = {}
    for part in text.split(","):
        name, _, share = (word.strip() for word in part.partition("="))
        if name in found:
            raise ConfigError(f"split ('{text}') must name '{name}' once; give one of them another name")
        try:
            found[name] = float(share)
        except ValueError:
            raise ConfigError(f"split ('{text}') must be like train=0.99,validation=0.01; write it so") from None
    return found


def _print(summary: PackSummary) -> None:
    columns = ["output", "documents", "tokens", "text", "bytes/token", "width", "size"]
    rows = []
    for path, header in summary.outputs.items():
        per_token = header.num_bytes_of_text / max(header.num_tokens, 1)
        sizes = [format_bytes(header.num_bytes_of_text), f"{per_token:.2f}", str(header.token_width)]
        rows.append([str(path), f"{header.num_documents:,}", f"{header.num_tokens:,}", *sizes])
        rows[-1].append(format_bytes(header.file_bytes))
    print_table(columns, rows)
    if summary.chat_probe is not None:
        from modlib.tracking.lines import printable

        print(
            "what is trained of a conversation is in brackets:",
            printable(summary.chat_probe),
            sep="\n",
            file=sys.stderr,
        )
    if summary.num_skipped:
        print(f"left out: {counted(summary.num_skipped, 'row')}, listed in {summary.skipped}", file=sys.stderr)
    print(f"{format_seconds(summary.seconds)} with {summary.engine}; details in {summary.record}", file=sys.stderr)
