"""A tokenizer read from its tokenizer.json: nothing is downloaded, no code is run."""

from __future__ import annotations

import difflib
import logging
import os
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

# The library warns in every process forked after it used threads (loader workers) unless this is set. Its threads are
# used by encode_batch alone, which workers do not call, so keeping them on is safe.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")

import tokenizers

from modlib.data.text.tokenizer_fingerprint import tokenizer_fingerprint
from modlib.runtime.errors import ConfigError, DataError, unreadable
from modlib.runtime.json_files import JSONError, read_json

logger = logging.getLogger("modlib")

END_OF_DOCUMENT_TOKENS = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>")
"""Tried in this order when no end-of-document token is named."""
BEGIN_OF_TEXT_TOKENS = ("<|begin_of_text|>", "<s>", "<bos>", "<|startoftext|>", "<|endoftext|>")
"""Tried in this order when no token to begin with is named; GPT-2 begins with what ends a document."""

Ids = npt.NDArray[np.uint32]
Lengths = npt.NDArray[np.int64]
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

    @property
    def vocab_size(self) -> int:
        """Every id is below it; tokens added later are counted."""
        ...

    def token_id(self, token: str) -> int:
        """The id of one token; DataError names the closest ones when there is no such token."""
        ...

    def token_text(self, token_id: int) -> str:
        """The text of one token, as the tokenizer's file has it; DataError when there is no such id."""
        ...

    def end_of_document_id(self, token: str | None = None) -> int:
        """The id that ends a document; None takes a well-known one."""
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

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path) / "tokenizer.json" if Path(path).is_dir() else Path(path)
        try:
            self._read(self.path.read_text(encoding="utf-8"))
        except OSError as error:
            raise unreadable(
                f"tokenizer {self.path} cannot be read: {error.strerror}; check the path", error
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
        self._reading_special: tokenizers.Tokenizer | None = None  # the same without that, made when it is needed

    def __getstate__(self) -> dict[str, Any]:  # the library's own pickling forgets encode_special_tokens
        state = {name: value for name, value in vars(self).items() if name not in ("_tokenizer", "_reading_special")}
        return state | {"_text": self._tokenizer.to_str()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        text = state.pop("_text")
        self.__dict__.update(state)
        self._load(text)

    @property
    def vocab_size(self) -> int:
        """Every id is below it; tokens added later are counted."""
        return max(self._tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1

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
            token: Its text; None takes the first of END_OF_DOCUMENT_TOKENS that the tokenizer has.

        Raises:
            ConfigError: The tokenizer has no such token; the message lists its special tokens.
        """
        found = self._first("end-of-document token", END_OF_DOCUMENT_TOKENS if token is None else (token,))
        if token is not None:
            warn_of_ordinary_end(self, token, found)
        return found

    def _first(self, what: str, wanted: Sequence[str]) -> int:
        for candidate in wanted:
            found: int | None = self._tokenizer.token_to_id(candidate)
            if found is not None:
                return found
        special = [added.content for added in self._tokenizer.get_added_tokens_decoder().values() if added.special]
        raise ConfigError(
            f"{what} ({' or '.join(wanted)}) must be a token of {self.path}; "
            f"name one of its special tokens: {', '.join(special[:20]) or 'it has none'}"
        )

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

    def encode(self, text: str, *, special_tokens: bool = False) -> list[int]:
        """Ids of one text, with nothing added before or after; in this thread.

        Args:
            text: Any text.
            special_tokens: Whether special tokens written in the text become their ids; else they are plain text.
        """
        return list(self._reader(special_tokens).encode(text, add_special_tokens=False).ids)

    def encode_batch(self, texts: Sequence[str], *, special_tokens: bool = False) -> tuple[Ids, Lengths]:
        """Ids of many texts back to back, and the number of ids of each; on all cores. Not for forked processes."""
        return _back_to_back(self._each(texts, special_tokens))

    def encode_with_spans(self, texts: Sequence[str]) -> list[tuple[Ids, Spans]]:
        """Of each text its ids, special tokens read, nothing added; and where each token begins and ends in it."""
        encodings = self._reader(special_tokens=True).encode_batch(list(texts), add_special_tokens=False)
        found = []
        for encoding in encodings:
            ids = np.fromiter(encoding.ids, np.uint32, len(encoding))
            spans = np.fromiter(chain.from_iterable(encoding.offsets), np.int64, 2 * len(ids))
            found.append((ids, spans.reshape(-1, 2)))
        return found

    def _each(self, texts: Sequence[str], special_tokens: bool) -> list[list[int]]:
        encodings = self._reader(special_tokens).encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def _reader(self, special_tokens: bool) -> Any:
        if not special_tokens:
            return self._tokenizer
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
        return str(self._tokenizer.decode(np.asarray(ids).tolist(), skip_special_tokens=skip_special_tokens))


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


def _back_to_back(rows: list[list[int]]) -> tuple[Ids, Lengths]:
    lengths = np.fromiter(map(len, rows), np.int64, len(rows))
    return np.fromiter(chain.from_iterable(rows), np.uint32, int(lengths.sum())), lengths


def named_in_folder(folder: Path) -> dict[str, Any]:
    """bos_token, eos_token, pad_token and model_max_length as the files beside a tokenizer name them."""
    found: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        try:
            content = read_json(folder / name, dict[str, Any])
        except JSONError:
            continue
        found |= {key: value for key, value in content.items() if value is not None}
    return found


def warn_of_ordinary_end(tokenizer: TextTokenizer, token: str, token_id: int) -> None:
    """Tell when a token that was chosen to end documents may be made of their text as well."""
    if not tokenizer.is_special(token_id):
        logger.warning(
            "end-of-document token (%r) is an ordinary token of %s, which text can hold: documents will seem to end "
            "within; its special tokens are %s",
            token,
            tokenizer.path,
            ", ".join(tokenizer.special_tokens[:20]) or "none",
        )


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
