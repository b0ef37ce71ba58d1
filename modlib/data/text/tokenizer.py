"""A tokenizer read from its tokenizer.json: nothing is downloaded, no code is run."""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Iterable, Sequence
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

# The library warns in every process forked after it used threads (loader workers) unless this is set. Its threads are
# used by encode_batch alone, which workers do not call, so keeping them on is safe.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")

import tokenizers

from modlib.data.text.plain_text import Ids, Lengths, PlainText, PlainTextError, back_to_back
from modlib.data.text.token_choice import (
    END_OF_DOCUMENT_TOKENS,
    choose_token,
    end_in_folder,
)
from modlib.data.text.tokenizer_fingerprint import tokenizer_fingerprint
from modlib.runtime.errors import ConfigError, DataError, unreadable
from modlib.runtime.json_files import parse_json

Spans = npt.NDArray[np.int64]
"""(tokens, 2): the first character of each token, and behind its last."""


class TextTokenizer(Protocol):
    """Text to token ids and back: what packing, datasets and collators use. It survives pickling."""

    path: Path
    """The file it was read from."""
    fingerprint: str
    """SHA-256, in hex, of the vocabulary and its rules; equal for equal tokenizers, wherever they lie."""
    settings: str
    """What else changes its ids, as text; empty when nothing is added to them or taken from them."""
    documents_end: int | None
    """The id that ends the documents it made, where their header says so: then `end_of_document_id` gives that one."""
    documents_begin: int | None
    """The id before every text of these documents, where their header names one."""

    @property
    def vocab_size(self) -> int:
        """Every id is below it; tokens added later are counted."""
        ...

    @property
    def begin_of_text_id(self) -> int | None:
        """The id that it puts before every text; None where it adds none."""
        ...

    def token_id(self, token: str) -> int:
        """The id of one token; DataError names the closest ones when there is no such token."""
        ...

    def token_text(self, token_id: int) -> str:
        """The text of one token, as the tokenizer's file has it; DataError when there is no such id."""
        ...

    def end_of_document_id(self, token: str | None = None) -> int:
        """The id that ends a document; None takes a special one, well-known or named by the folder."""
        ...

    def is_special(self, token_id: int) -> bool:
        """Whether an id stands for no text, as the end of a document does."""
        ...

    @property
    def special_tokens(self) -> list[str]:
        """The texts of all ids that stand for no text, and are read as such where special tokens are read."""
        ...

    @property
    def added_tokens(self) -> list[str]:
        """The texts of all tokens that are read wherever they are in a text, special or not."""
        ...

    def encode(self, text: str, *, special_tokens: bool = False) -> list[int]:
        """Ids of one text."""
        ...

    def encode_batch(self, texts: Sequence[str], *, special_tokens: bool = False) -> tuple[Ids, Lengths]:
        """Ids of many texts back to back, and the number of ids of each; on all cores."""
        ...

    def encode_with_spans(self, texts: Sequence[str]) -> list[tuple[Ids, Spans]]:
        """Of each text its ids, special tokens read, nothing added; and where each token begins and ends in it."""
        ...

    def decode(self, ids: Sequence[int] | npt.NDArray[np.integer[Any]], *, skip_special_tokens: bool = False) -> str:
        """The text of these ids; special tokens are shown unless skipped."""
        ...


class Tokenizer:
    """Text to token ids and back.

    Truncation and padding that the file may ask for are switched off: a corpus must lose nothing.

    Args:
        path: A tokenizer.json, or a folder with one.

    Raises:
        ConfigError: There is no such file.
        DataError: It is not a tokenizer.
    """

    settings = ""
    documents_end: int | None = None
    documents_begin: int | None = None

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path) / "tokenizer.json" if Path(path).is_dir() else Path(path)
        try:
            self._read(self.path.read_text(encoding="utf-8"))
        except OSError as error:
            raise unreadable(
                f"tokenizer {self.path} cannot be read: {error.strerror}; check the path", error, "model"
            ) from error

    def _read(self, text: str) -> None:
        try:
            self.fingerprint = tokenizer_fingerprint(text)
            self._load(text)
        except Exception as error:  # the library raises plain Exception for a file it does not understand
            raise DataError(
                f"tokenizer {self.path} must be a tokenizer.json of the tokenizers library; {error}"
            ) from error

    def _load(self, text: str) -> None:
        self._tokenizer = _lossless(text)
        self._tokenizer.encode_special_tokens = True  # "<|endoftext|>" written in a text is text, not the end of it
        # The same without that, and what encodes plain text; made when they are needed.
        self._reading_special: tokenizers.Tokenizer | None = None
        self._plain_text: PlainText | None = None
        self._showing = _with_own_texts(text, self._tokenizer)

    def __getstate__(self) -> dict[str, Any]:  # the library's own pickling forgets encode_special_tokens
        made = ("_tokenizer", "_reading_special", "_plain_text", "_showing")
        state = {name: value for name, value in vars(self).items() if name not in made}
        return state | {"_text": self._tokenizer.to_str()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        text = state.pop("_text")
        self.__dict__.update(state)
        self._load(text)

    @cached_property
    def vocab_size(self) -> int:
        """Every id is below it; tokens added later are counted."""
        return max(self._tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1

    @property
    def begin_of_text_id(self) -> int | None:
        """The id that is put before every text: none here."""
        return None

    def token_id(self, token: str) -> int:
        """The id of one token.

        Raises:
            DataError: There is no such token; the message names the closest ones.
        """
        found: int | None = self._tokenizer.token_to_id(token)
        if found is None:
            raise no_such_token(token, self.path, self._tokenizer.get_vocab(with_added_tokens=True))
        return found

    def token_text(self, token_id: int) -> str:
        """The text of one token: an added token's own content, not what its normalizer makes of it.

        Raises:
            DataError: There is no such id.
        """
        added = self._tokenizer.get_added_tokens_decoder().get(int(token_id))
        found: str | None = self._tokenizer.id_to_token(int(token_id)) if added is None else added.content
        if found is None:
            raise no_such_id(token_id, self)
        return found

    def end_of_document_id(self, token: str | None = None) -> int:
        """The id that ends a document.

        Args:
            token: Its text; None takes the first of END_OF_DOCUMENT_TOKENS that is a special token, or else the
                eos_token that the tokenizer's folder names, if it does not end the turns of the folder's chat template.

        Raises:
            ConfigError: The tokenizer has no such token; the message lists its special tokens.
        """
        if token is None and self.documents_end is not None:
            return self.documents_end
        named, why_not = (None, "") if token is not None else self._end_in_folder()
        return self._chosen("end-of-document token", token, END_OF_DOCUMENT_TOKENS, named, why_not)

    def _end_in_folder(self) -> tuple[str | None, str]:
        """What the files of the tokenizer's folder say; of a copy beside packed data, other files do not speak."""
        if self.path.is_dir():
            return end_in_folder(self.path)
        return end_in_folder(self.path.parent) if self.path.name == "tokenizer.json" else (None, "")

    def _chosen(
        self, what: str, token: str | None, known: Sequence[str], named: str | None = None, why_not: str = ""
    ) -> int:
        find = self._tokenizer.token_to_id
        return choose_token(self, what, find, token=token, known=known, named=named, why_not=why_not)

    def is_special(self, token_id: int) -> bool:
        """Whether an id is one of the special tokens, which stand for no text."""
        added = self._tokenizer.get_added_tokens_decoder().get(int(token_id))
        return added is not None and bool(added.special)

    @property
    def special_tokens(self) -> list[str]:
        """The texts of the special tokens, in the order of their ids."""
        added = self._tokenizer.get_added_tokens_decoder()
        return [added[number].content for number in sorted(added) if added[number].special]

    @property
    def added_tokens(self) -> list[str]:
        """The texts of all tokens that are read wherever they are in a text, in the order of their ids."""
        added = self._tokenizer.get_added_tokens_decoder()
        return [added[number].content for number in sorted(added)]

    @property
    def plain_text(self) -> PlainText:
        """What encodes texts in which special tokens are text."""
        if self._plain_text is None:
            self._plain_text = PlainText(self._tokenizer, self.path, self.vocab_size)
        return self._plain_text

    def encode(self, text: str, *, special_tokens: bool = False) -> list[int]:
        """Ids of one text, with nothing added before or after; in this thread.

        Args:
            text: Any text.
            special_tokens: Whether special tokens written in the text become their ids; else they are plain text.

        Raises:
            PlainTextError: See `modlib.data.text.plain_text`.
        """
        if special_tokens:
            return list(self._special_reader.encode(text, add_special_tokens=False).ids)
        return self.plain_text.encode(text)

    def encode_batch(self, texts: Sequence[str], *, special_tokens: bool = False) -> tuple[Ids, Lengths]:
        """Ids of many texts back to back, and the number of ids of each; on all cores. Not for forked processes."""
        if not special_tokens:
            return self.plain_text.encode_batch(texts)
        encodings = self._special_reader.encode_batch_fast(list(texts), add_special_tokens=False)
        return back_to_back([encoding.ids for encoding in encodings])

    def encode_with_spans(self, texts: Sequence[str]) -> list[tuple[Ids, Spans]]:
        """Of each text its ids, special tokens read, nothing added; and where each token begins and ends in it.

        Raises:
            PlainTextError: What is read as a special token is not written so, or the library cannot encode a text.
        """
        try:
            encodings = self._special_reader.encode_batch(list(texts), add_special_tokens=False)
        except Exception as error:  # the library raises plain Exception
            raise PlainTextError(f"cannot be encoded by {self.path} ({error})") from error
        found = []
        for text, encoding in zip(texts, encodings, strict=True):
            ids = np.fromiter(encoding.ids, np.uint32, len(encoding))
            spans = np.fromiter(chain.from_iterable(encoding.offsets), np.int64, 2 * len(ids))
            found.append((ids, spans.reshape(-1, 2)))
            self.plain_text.check_read(text, *found[-1])
        return found

    @property
    def _special_reader(self) -> Any:
        if self._reading_special is None:
            self._reading_special = _lossless(self._tokenizer.to_str())
            # In place of what would add special tokens, and leave spaces out of the places of tokens.
            self._reading_special.post_processor = tokenizers.processors.ByteLevel(trim_offsets=False)
        return self._reading_special

    def to_json(self) -> str:
        """The tokenizer.json that it was read from, truncation and padding left out."""
        return str(self._tokenizer.to_str())

    def decode(self, ids: Sequence[int] | npt.NDArray[np.integer[Any]], *, skip_special_tokens: bool = False) -> str:
        """The text of these ids; special tokens are shown unless skipped."""
        return str(self._showing.decode(np.asarray(ids).tolist(), skip_special_tokens=skip_special_tokens))


def _lossless(text: str) -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer.from_str(text)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def no_such_token(token: str, path: Path, vocabulary: Iterable[str]) -> ConfigError:
    """What is raised for a token that a tokenizer does not have."""
    close = difflib.get_close_matches(token, list(vocabulary), n=3, cutoff=0.5)
    remedy = f"the closest are {', '.join(map(repr, close))}" if close else "there is none like it"
    return ConfigError(f"token ({token!r}) must be one token of {path}; {remedy}")


def no_such_id(token_id: int, tokenizer: TextTokenizer) -> DataError:
    """What is raised for an id that a tokenizer does not have."""
    return DataError(
        f"token id ({token_id}) must be one of {tokenizer.path}, whose ids are below {tokenizer.vocab_size}; "
        "was the data made by another tokenizer?"
    )


def _with_own_texts(text: str, tokenizer: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    """A tokenizer that shows added tokens as the file has them; the library shows what its normalizer makes of them."""
    added = tokenizer.get_added_tokens_decoder()
    if all(tokenizer.id_to_token(number) == token.content for number, token in added.items()):
        return tokenizer
    content = parse_json(text, dict[str, Any], place="tokenizer.json")
    for token in content["added_tokens"]:
        token["normalized"] = False
    return _lossless(json.dumps(content))


def train_byte_level_bpe(texts: Sequence[str], path: Path, *, vocab_size: int, end_of_document: str) -> Tokenizer:
    """Train a byte-level BPE and write its tokenizer.json; the same texts give the same file, on any number of cores.

    Args:
        texts: What to train on.
        path: The file to write.
        vocab_size: Tokens, the 256 bytes and the end-of-document token (id 0) included.
        end_of_document: Text of that token.
    """
    byte_level = tokenizers.pre_tokenizers.ByteLevel
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = byte_level(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[end_of_document],
        initial_alphabet=sorted(byte_level.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    path.write_text(tokenizer.to_str(pretty=True), encoding="utf-8")
    return Tokenizer(path)
