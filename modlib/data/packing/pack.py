"""Text files to packed token files: on all cores, without losing a document, continued where it was cut off."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Literal

from modlib.data.packed.file import TOKEN_DTYPES
from modlib.data.packed.header import PackedHeader, narrowest_width
from modlib.data.packed.outputs import (
    exists,
    pack_record_beside,
    provenance_beside,
    skipped_beside,
)
from modlib.data.packed.writer import PackedFileWriter
from modlib.data.packing.block_encoder import (
    BadRow,
    BlockEncoder,
    EncodedBlock,
    SourceCount,
)
from modlib.data.packing.engine import choose_engine
from modlib.data.packing.journal import PackJournal
from modlib.data.packing.pack_record import PackSummary, completed, record_of
from modlib.data.packing.settings import PackPlan, planned
from modlib.data.packing.sharded import PackOutput
from modlib.data.packing.workers import PackWorkers
from modlib.data.text.boundary_tokens import BEGIN_OF_TEXT
from modlib.data.text.sources import Block, read_blocks
from modlib.data.text.tokenizer import TextTokenizer
from modlib.runtime import durable
from modlib.runtime.errors import DataError, require_choices

OnError = Literal["fail", "skip"]
Engine = Literal["auto", "fast", "tokenizer"]

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
    on_error: OnError = "fail",
    workers: int | None = None,
    resume: bool = False,
    overwrite: bool = False,
    split: Mapping[str, float] | None = None,
    shard_tokens: int | None = None,
    end_of_document: str | None = None,
    engine: Engine = "auto",
    chat: bool = False,
    chat_template: str | os.PathLike[str] | None = None,
    progress: Callable[[PackProgress], None] | None = None,
) -> PackSummary:
    """Pack documents in the order of the inputs, each followed by the end-of-document token.

    With `chat`, a document is a conversation, rendered by a template (see `ChatTemplate`), and the file has a loss
    mask: what the assistant says is trained, with what ends it. The end-of-document token is left out where the
    template's text ends with it, and trained only where the last answer has no end marker.

    The same inputs and settings give the same bytes, for any number of workers and however often the work was cut off.
    Until an output is complete, it lies in a folder `<name>.partial` beside it; there is no other file that could be
    taken for it. Memory does not grow with the inputs.

    Args:
        inputs: Files, folders or patterns; see `modlib.data.text.sources.find_sources`.
        path: The file to make, such as `books.packed`. With it come `books.pack.json`, how it was made;
            `books.tokenizer.json`, the tokenizer; and `books.packed.skipped.jsonl` when rows were left out.
        tokenizer: A folder, a tokenizer.json, a SentencePiece .model, or a tokenizer.
        field: Where the text is in a row: `a.b[0].c`, or `module:function`. Text files are one document each. None is
            `text`, or with chat `messages`: a list of {"role", "content"}.
        on_error: What happens with a row that is no document (not JSON, not UTF-8, no text at the field, an empty
            text, a special token's text that no other tokens spell; with chat: no conversation, or one that the
            template refuses): "fail" raises with its file and line, "skip" leaves it out and lists it.
        workers: Processes; None takes one per core, or none for little text.
        resume: Go on with what an interrupted call left; start where there is nothing, return where it is complete.
        overwrite: Whether existing files are replaced, and unfinished work is thrown away.
        split: Name -> share of the documents, adding up to 1: several outputs, `books.train.packed` for "train". A
            document's output is chosen by the hash of its text.
        shard_tokens: Several files per output, `books-00000-of-00008.packed` and so on, each of the documents that
            follow and as many as hold at most so many tokens; a longer document has a shard of its own.
        end_of_document: Text of the token that ends a document; None takes a special one of a well-known name, or else
            the one that the tokenizer's folder names (see `modlib.data.text.token_choice`).
        engine: "auto" takes the fast one where its ids are known to be the same; "fast" insists; "tokenizer" never.
        chat: Whether rows are conversations.
        chat_template: A file with a Jinja2 template; None takes the one in the tokenizer's folder.
        progress: Called about once per block.

    Raises:
        ConfigError: A setting is wrong, the template is, or an output is one of the inputs.
        DataError: A row is no document, an input cannot be read, the output or unfinished work of it exists, or it
            cannot be written.
    """
    require_choices(on_error=(on_error, OnError), engine=(engine, Engine))
    started = time.perf_counter()
    plan = planned(inputs, path, tokenizer, field, split, shard_tokens, end_of_document, chat, chat_template, workers)
    if (done := _done_before(plan, resume, overwrite, started)) is not None:
        return done
    return _run(plan, engine, on_error, resume, overwrite, progress, started)


def _done_before(plan: PackPlan, resume: bool, overwrite: bool, started: float) -> PackSummary | None:
    """What to return when there is nothing to do; None when there is, and it may be done.

    Raises:
        DataError: Outputs exist and may not be replaced; the message says why they are not gone on with.
    """
    goes_on = resume and plan.folder.exists()
    done = completed(pack_record_beside(plan.path), plan.decided_by(), started) if resume and not goes_on else None
    if isinstance(done, PackSummary):
        return replace(done, chat_probe=plan.chat_probe)
    if not overwrite and not goes_on and (there := plan.existing):
        raise done or exists(there[0])
    return None


def _run(
    plan: PackPlan,
    engine: Engine,
    on_error: OnError,
    resume: bool,
    overwrite: bool,
    progress: Callable[[PackProgress], None] | None,
    started: float,
) -> PackSummary:
    """Do what is planned, or what is left of it."""
    tokenizer, shares = plan.tokenizer, list(plan.shares.values())
    with PackWorkers(plan.workers) as workers:  # which start while this process compares the engines
        fast, engine_line = choose_engine(engine, tokenizer, plan.sources, plan.field, plan.chat)
        dtype = TOKEN_DTYPES[narrowest_width(tokenizer.vocab_size)]
        end_id = plan.end_of_document_id
        encoder = BlockEncoder(plan.sources, plan.field, tokenizer, fast, end_id, dtype, shares, plan.chat)
        journal = PackJournal(plan.folder, plan.decided_by(), resume=resume, overwrite=overwrite)
        try:
            packing = _Packing(plan, journal, on_error, progress)
            packing.read(partial(workers.encode, encoder))
            headers = packing.finish()
        except BaseException:
            journal.close(keep=journal.state is not None)
            raise
    for output in plan.outputs:
        journal.put(*plan.tokenizer_copy(output))
    told = {"on_error": on_error, "engine": engine} | plan.told()
    summary = packing.put_record(headers, engine_line, told, started)
    journal.close(keep=False)
    return summary


class _Packing:
    """One packing under way: the outputs, the journal, and what was counted."""

    def __init__(
        self,
        plan: PackPlan,
        journal: PackJournal,
        on_error: str,
        progress: Callable[[PackProgress], None] | None,
    ) -> None:
        self.plan, self.journal = plan, journal
        self.on_error, self.progress = on_error, progress
        self.counts = journal.counts
        self.num_bad = sum(count.bad for count in self.counts.values())
        self._touched: set[int] = set()
        state = journal.state
        new_writer = partial(
            PackedFileWriter,
            vocab_size=plan.tokenizer.vocab_size,
            tokenizer_fingerprint=plan.tokenizer.fingerprint,
            end_of_document_id=plan.end_of_document_id,
            loss_mask=plan.chat is not None,
        )
        self._outputs = [
            PackOutput(
                output,
                journal.folder,
                number,
                plan.shard_tokens,
                new_writer,
                None if state is None else state["outputs"][number],
                state is not None and state["finished"],
            )
            for number, output in enumerate(plan.outputs)
        ]
        self._bad_rows: BinaryIO | None = None
        if state is None or not state["finished"]:
            self._bad_rows = open(journal.folder / _SKIPPED, "ab")  # noqa: SIM115  open as long as the writers
            self._bad_rows.truncate(0 if state is None else state["skipped_bytes"])
            self._bad_rows.seek(0, os.SEEK_END)

    def read(self, encode: Callable[[Iterable[Block]], Iterator[tuple[Block, EncodedBlock]]]) -> None:
        """Encode and write what is not written yet."""
        if self.journal.state is not None and self.journal.state["finished"]:
            return
        total = sum(source.num_bytes for source in self.plan.sources)
        noted = time.monotonic()
        for block, encoded in encode(read_blocks(self.plan.sources, self.plan.field, self.journal.place)):
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
            raise DataError(f"inputs ({len(self.plan.sources)} files) must hold a document; they have none")
        self._note(None)

    def _take_bad(self, bad: BadRow) -> None:
        file = self.plan.sources[bad.source].path
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
        end = replace(self.journal.place, source=len(self.plan.sources)) if block is None else block.end
        touched = {number: self.counts[number] for number in self._touched}
        size = self._bad_rows.tell()
        self.journal.append(end, touched, outputs=outputs, skipped_bytes=size, finished=block is None)
        self._touched.clear()

    def finish(self) -> dict[Path, PackedHeader]:
        """Put the outputs in their places."""
        headers: dict[Path, PackedHeader] = {}
        fingerprint = hashlib.sha256("".join(self.counts[one].digest for one in sorted(self.counts)).encode())
        info: dict[str, Any] = {"inputs": len(self.plan.sources), "input_fingerprint": fingerprint.hexdigest()}
        if (begin := self.plan.tokenizer.begin_of_text_id) is not None:
            info[BEGIN_OF_TEXT] = begin
        for name, output in zip(self.plan.shares, self._outputs, strict=True):
            headers |= output.finish(info | {"split": name})
        return headers

    def put_record(
        self,
        headers: dict[Path, PackedHeader],
        engine: str,
        told: Mapping[str, Any],
        started: float,
    ) -> PackSummary:
        """Put beside the outputs how they were made, and the list of rows that were left out."""
        path = self.plan.path
        record = pack_record_beside(path)
        skipped = self._put_skipped(skipped_beside(path))
        seconds = time.perf_counter() - started
        summary = PackSummary(headers, record, skipped, self.num_bad, engine, seconds, self.plan.chat_probe)
        text = json.dumps(record_of(summary, told, self.plan.decided_by(), self.plan.sources, self.counts), indent=1)
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
