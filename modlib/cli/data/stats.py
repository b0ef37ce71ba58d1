"""`modlib data stats`: what is in a packed file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from modlib.cli.data.selection import File, TokenizerPath, trained_share
from modlib.cli.progress_bar import progress_bar
from modlib.cli.report import reported
from modlib.cli.table import print_table
from modlib.runtime.units import counted, format_percent

if TYPE_CHECKING:
    from modlib.data.inspecting.stats import PackedStats


def command(
    file: File,
    as_json: Annotated[bool, typer.Option("--json", help="JSON on stdout.")] = False,
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="OUT", help="Draw the lengths, as .png or .svg.")
    ] = None,
    tokenizer: TokenizerPath = None,
    num_frequent: Annotated[int, typer.Option("--num_frequent", help="Most frequent tokens to show.")] = 20,
    no_duplicates: Annotated[
        bool, typer.Option("--no_duplicates", help="Do not look for duplicate documents.")
    ] = False,
) -> None:
    """Count documents, tokens, bytes per token, lengths, the most frequent tokens, and exact duplicates."""
    with reported(), progress_bar(f"stats {file}", "tokens") as progress:
        from modlib.data.inspecting.stats import plot_lengths, stats

        found = stats(
            file,
            tokenizer=tokenizer,
            num_frequent=num_frequent,
            find_duplicates=not no_duplicates,
            progress=progress,
        )
        if plot is not None:
            plot_lengths(found, plot)
    if as_json:
        print(json.dumps(found.to_json(), ensure_ascii=False))
        return
    _print(found)


def _print(found: PackedStats) -> None:
    from modlib.data.inspecting.stats import bin_label
    from modlib.tracking.plot import bars

    quantiles = found.length_quantiles
    rows = [
        ["documents", f"{found.documents:,}"],
        ["tokens", f"{found.tokens:,}"],
        *([] if found.trained_tokens is None else [["trained", trained_share(found.trained_tokens, found.tokens)]]),
        ["bytes per token", "not known" if found.bytes_per_token is None else f"{found.bytes_per_token:.3f}"],
        [
            "ids used",
            f"{found.used_ids:,} of {found.vocab_size:,} ({format_percent(found.used_ids / found.vocab_size)})",
        ],
    ]
    if quantiles:
        names = {"0": "shortest", "0.5": "median", "0.9": "90 %", "0.99": "99 %", "1": "longest"}
        told = ", ".join(f"{name} {quantiles[key]:,}" for key, name in names.items())
        rows.append(["tokens per document", f"mean {found.mean_length:,.1f}, {told}"])
    if found.duplicates is not None:
        again = found.duplicates
        share = again.tokens / found.tokens if found.tokens else 0.0
        rows.append(["duplicates", f"{counted(again.documents, 'document')}, {format_percent(share)} of the tokens"])
        rows += [["", f"document {document:,} is document {first:,} again"] for document, first in again.examples]
    print_table(["", found.path], rows)
    if found.length_histogram:
        print("\ntokens per document")
        print("\n".join(bars([(bin_label(low, high), count) for low, high, count in found.length_histogram], width=72)))
    if found.frequent:
        print("\nmost frequent tokens")
        texts = ["" if one.text is None else repr(one.text) for one in found.frequent]
        labels = [f"{one.token_id} {text}".rstrip() for one, text in zip(found.frequent, texts, strict=True)]
        print(
            "\n".join(bars([(label, one.count) for label, one in zip(labels, found.frequent, strict=True)], width=72))
        )
