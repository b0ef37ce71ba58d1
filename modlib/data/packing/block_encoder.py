"""One block of rows to token ids: what each packing process does."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from modlib.data.text.chat import Chat, ended, without_missing
from modlib.data.text.chat_template import Conversation
from modlib.data.text.fast_bpe import FastBPE
from modlib.data.text.fields import Field, row_of
from modlib.data.text.plain_text import PlainTextError
from modlib.data.text.sources import Block, Source, without_mark
from modlib.data.text.tokenizer import TextTokenizer
from modlib.runtime.errors import ConfigError

Document = str | Conversation


@dataclass(frozen=True)
class BadRow:
    """A row that is no document.

    Args:
        source: Number of its file.
        row: Its line or row, from 1; None for a text file, which is one row.
        reason: Completes "line 3 ...".
    """

    source: int
    row: int | None
    reason: str


@dataclass
class SourceCount:
    """What came of the rows of one file so far."""

    documents: int = 0
    bad: int = 0
    digest: str = ""


@dataclass(frozen=True)
class EncodedPart:
    """Documents of a block that go into one output, each with its end-of-document token.

    Args:
        tokens: Ids, back to back.
        lengths: Tokens of each document.
        bytes_of_text: UTF-8 bytes of each document's text.
        trained: Whether each token is trained; None is all of them.
    """

    tokens: npt.NDArray[Any]
    lengths: npt.NDArray[np.int64]
    bytes_of_text: npt.NDArray[np.int64]
    trained: npt.NDArray[np.bool_] | None = None


@dataclass(frozen=True)
class EncodedBlock:
    """A block's documents for each output, its bad rows, and what came of each of its files."""

    parts: list[EncodedPart]
    bad: list[BadRow]
    counts: dict[int, SourceCount] = field(default_factory=dict)


class BlockEncoder:
    """Reads rows, splits documents by hash, tokenizes. Survives pickling.

    Args:
        sources: What blocks come from.
        text_field: Where a row's text is.
        tokenizer: Makes the ids.
        fast: Makes the same ids faster; None where there is no such engine.
        end_of_document_id: Put at the end of each document.
        dtype: Of the tokens.
        chat: Makes the text of a row that is a conversation; None where a row has a text.
        shares: Of each output, adding up to 1. The output of a document is chosen by the hash of its text: equal
            texts go to the same one, whatever file or order they come in.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        text_field: Field,
        tokenizer: TextTokenizer,
        fast: FastBPE | None,
        end_of_document_id: int,
        dtype: np.dtype[Any],
        shares: Sequence[float] = (1.0,),
        chat: Chat | None = None,
    ) -> None:
        self.sources = [source.kind for source in sources]
        self.text_field = text_field
        self.tokenizer = tokenizer
        self.fast = fast
        self.end_of_document_id = end_of_document_id
        self.dtype = dtype
        self.bounds = np.cumsum(shares)[:-1]
        self.chat = chat

    def __call__(self, block: Block) -> EncodedBlock:
        """Encode all documents of a block; bad rows are values, the caller decides."""
        found: list[list[Any]] = [[] for _ in range(len(self.bounds) + 1)]
        sizes: list[list[int]] = [[] for _ in found]
        places: list[list[tuple[int, int | None]]] = [[] for _ in found]
        encoded = EncodedBlock([], [], self._counts(block))
        for source, row, document in self._documents(block):
            count = encoded.counts[source]
            if isinstance(document, ValueError):
                encoded.bad.append(BadRow(source, row, str(document)))
                count.bad += 1
                continue
            count.documents += 1
            utf8 = (document if isinstance(document, str) else document.text).encode("utf-8")
            output = self._output(utf8)
            found[output].append(document)
            sizes[output].append(len(utf8))
            places[output].append((source, row))
        make = self._part if self.chat is None else self._chat_part
        for some, size, place in zip(found, sizes, places, strict=True):
            try:
                part = make(some, size)
            except PlainTextError:  # of one of them
                bad = self._not_encodable(some)
                self._take_out(encoded, [(*place[number], error) for number, error in bad.items()])
                good = [number for number in range(len(some)) if number not in bad]
                part = make([some[number] for number in good], [size[number] for number in good])
            encoded.parts.append(part)
        return encoded

    def _not_encodable(self, documents: list[Any]) -> dict[int, PlainTextError]:
        """What is wrong with documents of which the tokenizer makes no tokens, by their numbers."""
        bad: dict[int, PlainTextError] = {}
        for number, document in enumerate(documents):
            try:
                if self.chat is None:
                    self.tokenizer.encode(document)
                else:
                    self.tokenizer.encode_with_spans([document.text])
            except PlainTextError as error:
                bad[number] = error
        return bad

    def _take_out(self, encoded: EncodedBlock, bad: list[tuple[int, int | None, PlainTextError]]) -> None:
        """Make bad rows of documents that turned out to be none."""
        for source, row, error in bad:
            encoded.bad.append(BadRow(source, row, error.reason))
            encoded.counts[source].documents -= 1
            encoded.counts[source].bad += 1
        encoded.bad.sort(key=lambda one: (one.source, one.row or 0))

    def _counts(self, block: Block) -> dict[int, SourceCount]:
        """The hash of each file's part of the block."""
        first = block.start.source
        if isinstance(block.data, bytes):
            return {first: SourceCount(digest=hashlib.sha256(block.data).hexdigest())}
        if self.sources[first] == "txt":
            return {first + n: SourceCount(digest=hashlib.sha256(one).hexdigest()) for n, one in enumerate(block.data)}
        return {first: SourceCount(digest=hashlib.sha256(repr(block.data).encode("utf-8", "replace")).hexdigest())}

    def _documents(self, block: Block) -> Iterator[tuple[int, int | None, Document | ValueError]]:
        """(file, row, document or what is wrong with it) of each row that is not blank."""
        first, row = block.start.source, block.start.row
        if isinstance(block.data, bytes):
            lines = (without_mark(block.data) if row == 1 else block.data).split(b"\n")
            for number, line in enumerate(lines):
                if stripped := line.strip(b" \t\r\v\f"):
                    yield first, row + number, self._document(stripped, row_of)
        elif self.sources[first] == "txt":
            for number, contents in enumerate(block.data):
                yield first + number, None, self._document(contents, _text_of_file)
        else:
            for number, value in enumerate(block.data):
                yield first, row + number, self._document(value, _itself if self.chat is None else without_missing)

    def _document(self, raw: Any, read: Any) -> Document | ValueError:
        try:
            value = read(raw)
            if self.chat is not None:
                return self.chat.conversation(value)
            if read is _text_of_file and self.text_field.function is None:
                return str(value)
            return self.text_field.text(value)
        except ConfigError:  # no fault of the row
            raise
        except ValueError as error:
            return error

    def _output(self, utf8: bytes) -> int:
        if not len(self.bounds):
            return 0
        share = int.from_bytes(hashlib.sha256(utf8).digest()[:8], "big") / 2**64
        return int(np.searchsorted(self.bounds, share, side="right"))

    def _part(self, texts: list[str], num_bytes: list[int]) -> EncodedPart:
        ids, lengths = (self.fast or self.tokenizer).encode_batch(texts)
        tokens = np.empty(len(ids) + len(texts), self.dtype)
        ends = np.cumsum(lengths + 1) - 1
        inside = np.ones(len(tokens), bool)
        inside[ends] = False
        tokens[ends] = self.end_of_document_id
        tokens[inside] = ids
        return EncodedPart(tokens, lengths + 1, np.array(num_bytes, np.int64))

    def _chat_part(self, conversations: list[Conversation], num_bytes: list[int]) -> EncodedPart:
        tokens: list[npt.NDArray[Any]] = [np.zeros(0, self.dtype)]
        trained = [np.zeros(0, np.bool_)]
        encoded = (self.fast or self.tokenizer).encode_with_spans([one.text for one in conversations])
        for conversation, (ids, spans) in zip(conversations, encoded, strict=True):
            ids, mask = ended(conversation, ids, spans, self.end_of_document_id)
            tokens.append(ids.astype(self.dtype))
            trained.append(mask)
        lengths = np.array([len(one) for one in tokens[1:]], np.int64)
        return EncodedPart(np.concatenate(tokens), lengths, np.array(num_bytes, np.int64), np.concatenate(trained))


def _text_of_file(contents: bytes) -> str:
    try:
        text = without_mark(contents).decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"is not UTF-8 (byte {error.start})") from error
    if not text:
        raise ValueError("is empty")
    return text


def _itself(value: Any) -> Any:
    return value
