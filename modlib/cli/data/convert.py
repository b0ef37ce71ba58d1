"""`modlib data convert`: token files of other libraries."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from modlib.cli.data.made import NOT_MADE, Overwrite, print_made
from modlib.cli.data.selection import TokenizerPath
from modlib.cli.progress_bar import progress_bar
from modlib.cli.report import reported
from modlib.runtime.errors import ConfigError
from modlib.runtime.units import format_bytes


def command(
    source: Annotated[Path, typer.Argument(metavar="IN", help="What to read.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="What to make.")],
    come_from: Annotated[
        str | None, typer.Option("--from", help="IN is of modalities, megatron, nanogpt or huggingface.")
    ] = None,
    go_to: Annotated[str | None, typer.Option("--to", help="OUT is for modalities, megatron or nanogpt.")] = None,
    vocab_size: Annotated[
        int | None, typer.Option("--vocab_size", help="Ids are below it. Default: the largest id + 1.")
    ] = None,
    tokenizer: TokenizerPath = None,
    end_of_document_id: Annotated[
        int | None, typer.Option("--end_of_document_id", help="Ends each document. Default: the tokenizer's.")
    ] = None,
    column: Annotated[
        str | None, typer.Option("--column", help="Of a HuggingFace dataset. Default: input_ids or tokens.")
    ] = None,
    trust_lengths: Annotated[
        bool, typer.Option("--trust_lengths", help="For .pbin files that Modalities merged: their offsets are wrong.")
    ] = False,
    drop_loss_mask: Annotated[
        bool, typer.Option("--drop_loss_mask", help="With --to: leave out a loss mask; the other formats hold none.")
    ] = False,
    overwrite: Overwrite = False,
) -> Path:
    """Make a packed file of another library's token file (--from), or the other way (--to)."""
    with reported(NOT_MADE), progress_bar(f"convert {source.name}", "tokens") as progress:
        if (come_from is None) == (go_to is None):
            raise ConfigError(
                f"--from ({come_from}) and --to ({go_to}) must be one alone; with --from, OUT is a packed file, with "
                "--to, IN is one"
            )
        from modlib.data.foreign.convert import convert_from, convert_to

        if come_from is None:
            only_from: dict[str, Any] = {
                "vocab_size": vocab_size, "tokenizer": tokenizer, "end_of_document_id": end_of_document_id,
                "column": column, "trust_lengths": trust_lengths or None,
            }  # fmt: skip
            if given := [name for name, value in only_from.items() if value is not None]:
                raise ConfigError(f"--{given[0]} must go with --from; a packed file says such things itself")
            made = convert_to(
                source,
                out,
                go_to,  # type: ignore[arg-type]
                drop_loss_mask=drop_loss_mask,
                overwrite=overwrite,
                progress=progress,
            )
        elif drop_loss_mask:
            raise ConfigError("--drop_loss_mask must go with --to; the other formats have no loss mask")
        else:
            header = convert_from(
                source,
                out,
                come_from,  # type: ignore[arg-type]
                vocab_size=vocab_size,
                tokenizer=tokenizer,
                end_of_document_id=end_of_document_id,
                column=column,
                trust_lengths=trust_lengths,
                overwrite=overwrite,
                progress=progress,
            )
    if come_from is None:
        print("\n".join(f"{path}: {format_bytes(path.stat().st_size)}" for path in made))
    else:
        guessed = vocab_size is None and tokenizer is None
        print_made(out, header, f"; vocab_size {header.vocab_size} is its largest id + 1" if guessed else "")
    return out
