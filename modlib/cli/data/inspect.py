"""`modlib data inspect`: what a packed file says of itself, and the tokens of a part of it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from modlib.cli.data.selection import (
    Document,
    File,
    Range,
    SeqLen,
    TokenizerPath,
    Window,
    chosen,
    trained_share,
)
from modlib.cli.report import reported
from modlib.cli.table import print_table
from modlib.runtime.units import counted, format_bytes

if TYPE_CHECKING:
    from modlib.data.inspecting.text import Part
    from modlib.data.packed.file import PackedFile
    from modlib.data.text.tokenizer import TextTokenizer


def command(
    file: File,
    document: Document = None,
    window: Window = None,
    seq_len: SeqLen = None,
    span: Range = None,
    tokenizer: TokenizerPath = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON on stdout.")] = False,
) -> None:
    """Show a packed file's header; or each token of a document, a training window or a range, with its text."""
    with reported():
        from modlib.data.corpora.corpus import open_packed
        from modlib.data.inspecting.text import part_of, tokenizer_for

        packed = open_packed(file)
        reader = tokenizer_for(packed, tokenizer)
        if document is None and window is None and seq_len is None and span is None:
            _print_header(packed, reader, as_json)
            return
        part = part_of(packed, **chosen(document, window, seq_len, span))
        _print_part(packed, part, reader, as_json)


def _print_header(packed: PackedFile, reader: TextTokenizer | None, as_json: bool) -> None:
    header = packed.header
    trained = packed.count_trained(0, packed.num_tokens) if packed.has_loss_mask else None
    record: dict[str, Any] = vars(header) | {
        "sections": {name: list(place) for name, place in header.sections.items()},
        "info": dict(header.info),
        "path": str(packed.path),
        "tokenizer_path": None if reader is None else str(reader.path),
        "trained_tokens": trained,
    }
    if as_json:
        print(json.dumps(record, indent=1, ensure_ascii=False))
        return
    per_token = header.num_bytes_of_text / header.num_tokens if header.num_tokens else 0.0
    rows = [
        ["documents", f"{header.num_documents:,}"],
        ["tokens", f"{header.num_tokens:,}"],
        *([] if trained is None else [["trained", trained_share(trained, header.num_tokens)]]),
        [
            "bytes per token",
            f"{header.token_width} in the file, {f'{per_token:.3f} of text' if per_token else 'text ?'}",
        ],
        ["size", format_bytes(header.file_bytes)],
        ["vocabulary", f"ids below {header.vocab_size:,}; the largest is {header.max_token_id:,}"],
        ["end of document", "none" if header.end_of_document_id is None else str(header.end_of_document_id)],
        ["tokenizer", header.tokenizer_fingerprint[:12] or "not named"],
        ["tokenizer file", "not beside it" if reader is None else str(reader.path)],
        ["SHA-256", header.sha256],
        *([f"info {name}", json.dumps(value, ensure_ascii=False)] for name, value in header.info.items()),
    ]
    print_table(["", str(packed.path)], rows)


def _print_part(packed: PackedFile, part: Part, reader: TextTokenizer | None, as_json: bool) -> None:
    from modlib.data.inspecting.text import documents_at

    ids = part.tokens.tolist()
    first, begins = documents_at(packed, part.start, len(ids))
    if as_json:
        text = None if reader is None else reader.decode(part.tokens)
        record: dict[str, Any] = {"path": str(packed.path), "part": part.name}
        record |= {"start": part.start, "first_document": first}
        record |= {"tokens": ids, "text": text, "trained": None if part.trained is None else part.trained.tolist()}
        print(json.dumps(record, ensure_ascii=False))
        return
    begins_at = dict(zip(begins.tolist(), range(first + 1, first + 1 + len(begins)), strict=True))
    number, rows = first, []
    for place, token in enumerate(ids):
        number = begins_at.get(place, number)
        text = "" if reader is None else repr(reader.decode([token]))
        rows.append([str(part.start + place), str(number), str(token), text])
        if part.trained is not None:
            rows[-1].append("trained" if part.trained[place] else "")
    columns = ["token", "document", "id", "text", *([] if part.trained is None else ["trained"])]
    print_table(columns, rows, title=f"{part.name} of {packed.path}: {counted(len(ids), 'token')}")
