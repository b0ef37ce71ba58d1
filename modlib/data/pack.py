"""Text files to packed token files: on all cores, without losing a document, continued where it was cut off."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Literal

from modlib.data.block_encoder import BadRow, BlockEncoder, SourceCount
from modlib.data.chat import Chat
from modlib.data.chat_template import find_chat_template
from modlib.data.fields import Field
from modlib.data.outputs import exists, pack_record_beside, provenance_beside, require_not_read, skipped_beside
from modlib.data.pack_engine import SMALL_BYTES, choose_engine, load_tokenizer
from modlib.data.pack_journal import PackJournal, partial_folder
from modlib.data.pack_record import PackSummary, completed, record_of
from modlib.data.pack_shards import PackOutput
from modlib.data.pack_workers import PackWorkers
from modlib.data.packed_file import TOKEN_DTYPES
from modlib.data.packed_header import PackedHeader, narrowest_width
from modlib.data.packed_writer import PackedFileWriter
from modlib.data.packing import tokenizer_beside
from modlib.data.sentencepiece_tokenizer import PretrainedSPTokenizer
from modlib.data.shards import shards_of
from modlib.data.sources import Block, Source, ending_of, find_sources, read_blocks
from modlib.data.tokenizer import TextTokenizer, Tokenizer
from modlib.runtime import durable
from modlib.runtime.errors import ConfigError, DataError

JOURNAL_S = 10.0
"""Seconds between two notes of what is on the disk: what is lost at most when a packing is cut off."""
_SKIPPED = "skipped.jsonl"


@dataclass(frozen=True)
class PackProgress:
    """How far a packing is."""

    bytes_read: int
    bytes_total: int
    documents: int
    tokens: int
    bad_rows: int


def pack(
    inputs: Sequence[str | os.PathLike[str]],
    path: str | os.PathLike[str],
    tokenizer: str | os.PathLike[str] | TextTokenizer,
    *,
    field: str | None = None,
    on_error: Literal["fail", "skip"] = "fail",
    workers: int | None = None,
    resume: bool = False,
    overwrite: bool = False,
    split: Mapping[str, float] | None = None,
    shard_tokens: int | None = None,
    end_of_document: str | None = None,
    engine: Literal["auto", "fast", "tokenizer"] = "auto",
    chat: bool = False,
    chat_template: str | os.PathLike[str] | None = None,
    progress: Callable[[PackProgress], None] | None = None,
) -> PackSummary:
    """Pack documents in the order of the inputs, each followed by the end-of-document token.

    With `chat`, a document is a conversation, rendered by a template (see `ChatTemplate`), and the file has a loss
    mask: what the assistant says is trained, its end marker too. The end-of-document token is not, and is left out
    where the template's text ends with it.

    The same inputs and settings give the same bytes, for any number of workers and however often the work was cut off.
    Until an output is complete, it lies in a folder `<name>.partial` beside it; there is no other file that could be
    taken for it. Memory does not grow with the inputs.

    Args:
        inputs: Files, folders or patterns; see `modlib.data.sources.find_sources`.
        path: The file to make, such as `books.packed`. With it come `books.pack.json`, how it was made;
            `books.tokenizer.json`, the tokenizer; and `books.packed.skipped.jsonl` when rows were left out.
        tokenizer: A folder, a tokenizer.json, a SentencePiece .model, or a tokenizer.
        field: Where the text is in a row: `a.b[0].c`, or `module:function`. Text files are one document each. None is
            `text`, or with chat `messages`: a list of {"role", "content"}.
        on_error: What happens with a row that is no document (not JSON, not UTF-8, no text at the field, an empty
            text; with chat: no conversation, or one that the template refuses): "fail" raises with its file and line,
            "skip" leaves it out and lists it.
        workers: Processes; None takes one per core, or none for little text.
        resume: Go on with what an interrupted call left; start where there is nothing, return where it is complete.
        overwrite: Whether existing files are replaced, and unfinished work is thrown away.
        split: Name -> share of the documents, adding up to 1: several outputs, `books.train.packed` for "train". A
            document's output is chosen by the hash of its text.
        shard_tokens: Several files per output, `books-00000-of-00008.packed` and so on, each of the documents that
            follow and as many as hold at most so many tokens; a longer document has a shard of its own.
        end_of_document: Text of the token that ends a document; None takes a well-known one the tokenizer has.
        engine: "auto" takes the fast one where its ids are known to be the same; "fast" insists; "tokenizer" never.
        chat: Whether rows are conversations.
        chat_template: A file with a Jinja2 template; None takes the one in the tokenizer's folder.
        progress: Called about once per block.

    Raises:
        ConfigError: A setting is wrong, the template is, or an output is one of the inputs.
        DataError: A row is no document, an input cannot be read, the output or unfinished work of it exists, or it
            cannot be written.
    """
    started = time.perf_counter()
    path = Path(path)
    field = field or ("messages" if chat else "text")
    text_field = Field(field, beside=("tools",) if chat else ())
    shares = _checked_split(split, shard_tokens)
    if ending_of(path):
        raise ConfigError(f"output ({path}) must not be a kind of input; name the output last")
    sources = find_sources(inputs)
    loaded = tokenizer if not isinstance(tokenizer, (str, os.PathLike)) else load_tokenizer(tokenizer)
    end_id = loaded.end_of_document_id(end_of_document)
    chats = _chat(loaded, text_field, sources, chat, chat_template)
    workers = _checked_workers(workers, sources)
    settings = _decided_by(sources, loaded, field, end_id, shares, shard_tokens, chats)
    outputs = [path if name is None else path.with_name(f"{path.stem}.{name}{path.suffix}") for name in shares]
    record, folder = pack_record_beside(path), partial_folder(path)
    shards = [shard for output in outputs for shard in shards_of(output)] if shard_tokens is not None else []
    read = [*(one.path for one in sources), loaded.path, *(() if chat_template is None else [chat_template])]
    require_not_read([*outputs, *shards, record, skipped_beside(path)], read)
    done = completed(record, settings, started) if resume and not folder.exists() else None
    if isinstance(done, PackSummary):
        return done
    if not overwrite and not (resume and folder.exists()):
        _check_free(outputs, shard_tokens is not None, done)
    fast, engine_line = choose_engine(engine, loaded, sources, text_field, chat=chat)
    loaded = _for_processes(loaded, workers)
    dtype = TOKEN_DTYPES[narrowest_width(loaded.vocab_size)]
    encoder = BlockEncoder(sources, text_field, loaded, fast, end_id, dtype, list(shares.values()), chats)
    journal = PackJournal(folder, settings, resume=resume, overwrite=overwrite)
    try:
        packing = _Packing(
            sources, outputs, list(shares), loaded, end_id, chat, shard_tokens, journal, on_error, progress
        )
        packing.read(encoder, workers, text_field)
        headers = packing.finish()
    except BaseException:
        journal.close(keep=journal.state is not None)
        raise
    told = {"field": field, "on_error": on_error, "workers": workers, "split": split, "shard_tokens": shard_tokens}
    told |= {"engine": engine, "end_of_document_id": end_id, "tokenizer": str(loaded.path), "chat": chat}
    if chats is not None:
        told |= {"chat_template": chats.template.text, "chat_template_from": chats.template.name}
    for output in outputs:
        journal.put(*_tokenizer_of(loaded, output))
    summary = packing.put_record(path, headers, engine_line, told, settings, started)
    journal.close(keep=False)
    return summary


def _decided_by(
    sources: Sequence[Source],
    tokenizer: TextTokenizer,
    field: str,
    end_of_document_id: int,
    shares: Mapping[str | None, float],
    shard_tokens: int | None,
    chat: Chat | None,
) -> dict[str, Any]:
    """Everything that decides the bytes of the outputs: it may not change before a packing goes on."""
    template = {} if chat is None else {"chat template": [chat.template.sha256, chat.template.variables]}
    return template | {
        "inputs": [[str(one.path), one.num_bytes, one.mtime_ns] for one in sources],
        "tokenizer": [tokenizer.fingerprint, tokenizer.settings],
        "field": field,
        "end of document": end_of_document_id,
        "split": [list(pair) for pair in shares.items()],
        "shard tokens": shard_tokens,
    }


class _Packing:
    """One packing under way: the outputs, the journal, and what was counted."""

    def __init__(
        self,
        sources: Sequence[Source],
        outputs: Sequence[Path],
        names: Sequence[str | None],
        tokenizer: TextTokenizer,
        end_of_document_id: int,
        loss_mask: bool,
        shard_tokens: int | None,
        journal: PackJournal,
        on_error: str,
        progress: Callable[[PackProgress], None] | None,
    ) -> None:
        self.sources, self.names, self.journal = sources, names, journal
        self.on_error, self.progress = on_error, progress
        self.counts = journal.counts
        self.num_bad = sum(count.bad for count in self.counts.values())
        self._touched: set[int] = set()
        state = journal.state
        new_writer = partial(
            PackedFileWriter,
            vocab_size=tokenizer.vocab_size,
            tokenizer_fingerprint=tokenizer.fingerprint,
            end_of_document_id=end_of_document_id,
            loss_mask=loss_mask,
        )
        self._outputs = [
            PackOutput(
                output,
                journal.folder,
                number,
                shard_tokens,
                new_writer,
                None if state is None else state["outputs"][number],
                state is not None and state["finished"],
            )
            for number, output in enumerate(outputs)
        ]
        self._bad_rows: BinaryIO | None = None
        if state is None or not state["finished"]:
            self._bad_rows = open(journal.folder / _SKIPPED, "ab")  # noqa: SIM115  open as long as the writers
            self._bad_rows.truncate(0 if state is None else state["skipped_bytes"])
            self._bad_rows.seek(0, os.SEEK_END)

    def read(self, encoder: BlockEncoder, workers: int, text_field: Field) -> None:
        """Encode and write what is not written yet."""
        if self.journal.state is not None and self.journal.state["finished"]:
            return
        total = sum(source.num_bytes for source in self.sources)
        noted = time.monotonic()
        with PackWorkers(encoder, workers) as processes:
            for block, encoded in processes.encode(read_blocks(self.sources, text_field, self.journal.place)):
                for bad in encoded.bad:
                    self._take_bad(bad)
                for output, part in zip(self._outputs, encoded.parts, strict=True):
                    output.write(part)
                self._count(encoded.counts)
                if self.progress is not None:
                    self.progress(self._progress(block, total))
                if time.monotonic() - noted >= JOURNAL_S:
                    self._note(block)
                    noted = time.monotonic()
        if not any(count.documents for count in self.counts.values()):
            raise DataError(f"inputs ({len(self.sources)} files) must hold a document; they have none")
        self._note(None)

    def _take_bad(self, bad: BadRow) -> None:
        file = self.sources[bad.source].path
        if self.on_error == "fail":
            where = file if bad.row is None else f"{file}:{bad.row}"
            raise DataError(f"{where} {bad.reason}; correct it, or leave such rows out with --on_error skip")
        line = json.dumps({"file": str(file), "line": bad.row, "reason": bad.reason}, ensure_ascii=False)
        assert self._bad_rows is not None
        self._bad_rows.write(line.encode("utf-8", "replace") + b"\n")

    def _count(self, counts: Mapping[int, SourceCount]) -> None:
        for number, new in counts.items():
            old = self.counts.get(number, SourceCount())
            self.num_bad += new.bad
            digest = hashlib.sha256((old.digest + new.digest).encode()).hexdigest()
            self.counts[number] = SourceCount(old.documents + new.documents, old.bad + new.bad, digest)
        self._touched |= set(counts)

    def _progress(self, block: Block, total: int) -> PackProgress:
        documents, tokens = (
            sum(one.counted(what) for one in self._outputs) for what in ("num_documents", "num_tokens")
        )
        return PackProgress(block.bytes_read, total, documents, tokens, self.num_bad)

    def _note(self, block: Block | None) -> None:
        """Bring everything to the disk, then say so in the journal; without a block, that all is read."""
        outputs = [output.checkpoint() for output in self._outputs]
        assert self._bad_rows is not None
        self._bad_rows.flush()
        os.fsync(self._bad_rows.fileno())
        end = replace(self.journal.place, source=len(self.sources)) if block is None else block.end
        touched = {number: self.counts[number] for number in self._touched}
        size = self._bad_rows.tell()
        self.journal.append(end, touched, outputs=outputs, skipped_bytes=size, finished=block is None)
        self._touched.clear()

    def finish(self) -> dict[Path, PackedHeader]:
        """Put the outputs in their places."""
        headers: dict[Path, PackedHeader] = {}
        fingerprint = hashlib.sha256("".join(self.counts[one].digest for one in sorted(self.counts)).encode())
        info = {"inputs": len(self.sources), "input_fingerprint": fingerprint.hexdigest()}
        for name, output in zip(self.names, self._outputs, strict=True):
            headers |= output.finish(info | {"split": name})
        return headers

    def put_record(
        self,
        path: Path,
        headers: dict[Path, PackedHeader],
        engine: str,
        told: Mapping[str, Any],
        settings: Mapping[str, Any],
        started: float,
    ) -> PackSummary:
        """Put beside the outputs how they were made, and the list of rows that were left out."""
        record = pack_record_beside(path)
        skipped = self._put_skipped(skipped_beside(path))
        summary = PackSummary(headers, record, skipped, self.num_bad, engine, time.perf_counter() - started)
        text = json.dumps(record_of(summary, told, settings, self.sources, self.counts), indent=1)
        self.journal.put(record, text.encode())
        for output in headers:  # what was there before had another maker
            provenance_beside(output).unlink(missing_ok=True)
        return summary

    def _put_skipped(self, path: Path) -> Path | None:
        """The list of rows that were left out; an old one is removed where there are none."""
        assert self.journal.state is not None
        if self._bad_rows is not None:
            self._bad_rows.close()
        if not self.journal.state["skipped_bytes"]:
            path.unlink(missing_ok=True)
            return None
        if (source := self.journal.folder / _SKIPPED).exists():  # else it was put there before the work was cut off
            durable.rename(source, path)
        return path


def _checked_split(split: Mapping[str, float] | None, shard_tokens: int | None) -> dict[str | None, float]:
    if shard_tokens is not None and shard_tokens < 1:
        raise ConfigError(f"shard_tokens ({shard_tokens}) must be at least 1; leave it out for one file")
    if split is None:
        return {None: 1.0}
    for name, share in split.items():
        if not name.isidentifier() or not 0 < share < 1:
            raise ConfigError(f"split ('{name}' = {share}) must be a name and a share between 0 and 1")
    if abs(sum(split.values()) - 1) > 1e-9:
        raise ConfigError(f"split (shares of {sum(split.values())} together) must add up to 1; correct a share")
    return {name: share for name, share in split.items()}  # noqa: C416  the keys' type is wider


def _chat(
    tokenizer: TextTokenizer, field: Field, sources: Sequence[Source], chat: bool, path: str | os.PathLike[str] | None
) -> Chat | None:
    if not chat:
        if path is not None:
            raise ConfigError(f"chat_template ({path}) must go with chat; add --chat")
        return None
    if tokenizer.settings:
        raise ConfigError(
            f"settings of the tokenizer ({tokenizer.settings}) must be none for chat: the template writes such tokens "
            "itself; leave them out"
        )
    if field.function is None and (text := next((one.path for one in sources if one.kind == "txt"), None)):
        raise ConfigError(f"input ({text}) must be .jsonl or .parquet for chat; a text file holds no messages")
    template = find_chat_template(tokenizer, None if path is None else Path(path))
    return Chat(field, template, tokenizer.special_tokens)


def _checked_workers(workers: int | None, sources: Sequence[Source]) -> int:
    if workers is None:
        return 1 if sum(source.num_bytes for source in sources) < SMALL_BYTES else len(os.sched_getaffinity(0))
    if workers < 1:
        raise ConfigError(f"workers ({workers}) must be at least 1; leave it out for one per core")
    return workers


def _for_processes(tokenizer: TextTokenizer, workers: int) -> TextTokenizer:
    """The tokenizer without threads of its own where there are several processes."""
    if isinstance(tokenizer, PretrainedSPTokenizer) and workers > 1:
        tokenizer = copy.copy(tokenizer)
        tokenizer.num_threads = 1
    return tokenizer


def _check_free(outputs: Sequence[Path], sharded: bool, reason: DataError | None) -> None:
    """Raise DataError when an output exists: that, or why it cannot be gone on with."""
    for output in outputs:
        there = shards_of(output)[:1] if sharded else [output] if output.exists() else []
        if there:
            raise reason or exists(there[0])


def _tokenizer_of(tokenizer: TextTokenizer, output: Path) -> tuple[Path, bytes | None]:
    """Where a copy of the tokenizer is kept beside an output, and the copy; None where it lies there."""
    beside = tokenizer_beside(output)
    if isinstance(tokenizer, PretrainedSPTokenizer):
        beside = output.with_name(f"{output.stem}.tokenizer.model")
    elif not isinstance(tokenizer, Tokenizer):
        return beside, None
    if beside.exists() and tokenizer.path.exists() and beside.samefile(tokenizer.path):
        return beside, None
    if isinstance(tokenizer, Tokenizer) and not tokenizer.path.is_file():
        return beside, tokenizer.to_json().encode()
    return beside, tokenizer.path.read_bytes()
