"""A tokenizer read from its tokenizer.json: nothing is downloaded, no code is run."""

from __future__ import annotations

import difflib
import hashlib
import json
import logging
import os
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

# The library warns in every process forked after it used threads (loader workers) unless this is set. Its threads are
# used by encode_batch alone, which workers do not call, so keeping them on is safe.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")

import tokenizers

from modlib.components import component
from modlib.data import corpus
from modlib.runtime.errors import ConfigError, DataError

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
        DataError: There is no such file, or it is not a tokenizer.
    """

    settings = ""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path) / "tokenizer.json" if Path(path).is_dir() else Path(path)
        try:
            self._read(self.path.read_text(encoding="utf-8"))
        except OSError as error:
            raise DataError(f"tokenizer {self.path} cannot be read: {error.strerror}; check the path") from error

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

    def end_of_document_id(self, token: str | None = None) -> int:
        """The id that ends a document.

        Args:
            token: Its text; None takes the first of END_OF_DOCUMENT_TOKENS that the tokenizer has.

        Raises:
            DataError: The tokenizer has no such token; the message lists its special tokens.
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
        raise DataError(
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


@component("tokenizer", "pretrained_hf_tokenizer")
class PretrainedHFTokenizer(Tokenizer):
    """A HuggingFace tokenizer from local files; never from the network, and no code of its folder is run.

    A tokenizer.json is read by the tokenizers library. A folder without one (vocab.json and merges.txt, or vocab.txt)
    is converted by transformers, which must then be installed.

    Nothing is added to a text, cut or padded unless asked for, whatever the file says. What is asked for holds for
    encode and encode_batch alike.

    Args:
        path: A tokenizer.json, a folder of a tokenizer, or a corpus such as "stdlib:train" for the one that made it.
        add_bos: Whether ids begin with the beginning-of-text token.
        add_eos: Whether ids end with the end-of-text token.
        bos_token: Its text; None takes the one that the folder's files name, or a well-known one.
        eos_token: Its text; None likewise.
        pad_token: What padding holds; None takes the folder's, or else the end-of-text token.
        truncation: Whether ids beyond max_length are cut off; the added tokens are kept.
        max_length: Ids per text, at least 1; None takes the folder's model_max_length.
        padding: False: none. True: to the longest text of a batch (nothing for one text). "max_length": to max_length.

    Raises:
        ConfigError: truncation or padding without a length, or max_length below the added tokens.
        DataError: There is no tokenizer, or it has no such token.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        add_bos: bool = False,
        add_eos: bool = False,
        bos_token: str | None = None,
        eos_token: str | None = None,
        pad_token: str | None = None,
        truncation: bool = False,
        max_length: int | None = None,
        padding: bool | Literal["max_length"] = False,
    ) -> None:
        if os.fspath(path) in corpus.NAMES:
            path = corpus.prepare(path).with_name("tokenizer.json")
        folder = Path(path)
        if folder.is_dir() and not (folder / "tokenizer.json").is_file():
            self.path = folder
            self._read(_converted(folder))
        else:
            super().__init__(path)
        named = named_in_folder(self.path if self.path.is_dir() else self.path.parent)
        self.padding = padding
        ends = _tokens(eos_token, named.get("eos_token"), END_OF_DOCUMENT_TOKENS)
        self._before = (
            [self._first("bos_token", _tokens(bos_token, named.get("bos_token"), BEGIN_OF_TEXT_TOKENS))]
            if add_bos
            else []
        )
        self._after = [self._first("eos_token", ends)] if add_eos else []
        self._pad_id = self._first("pad_token", _tokens(pad_token, named.get("pad_token"), ends)) if padding else 0
        self._limit = self._checked_limit(truncation, padding, max_length, named.get("model_max_length"))
        self.truncation = truncation
        parts: dict[str, Any] = {"bos": self._before, "eos": self._after, "most": self._limit if truncation else None}
        if padding:
            parts |= {"padding": padding, "pad": [self._pad_id], "to": self._limit if padding == "max_length" else None}
        self.settings = ",".join(f"{name}={value}" for name, value in parts.items() if value)

    def _checked_limit(self, truncation: bool, padding: Any, max_length: int | None, of_model: Any) -> int | None:
        if not truncation and padding != "max_length":
            if max_length is not None:
                raise ConfigError(
                    f"max_length ({max_length}) must go with truncation = True or padding = 'max_length'; "
                    "set one of them, or leave max_length out"
                )
            return None
        limit = max_length
        if limit is None and isinstance(of_model, int) and of_model < 1 << 40:  # without one, a folder says 10^30
            limit = of_model
        if limit is None:
            raise ConfigError(
                "max_length (None) must be given with truncation or padding = 'max_length': the tokenizer's files "
                "name none; set max_length"
            )
        added = len(self._before) + len(self._after)
        if limit < max(added, 1):
            raise ConfigError(
                f"max_length ({limit}) must be at least {max(added, 1)}, what add_bos and add_eos add; set it higher"
            )
        return limit

    def encode(self, text: str, *, special_tokens: bool = False) -> list[int]:
        """Ids of one text, with what add_bos, add_eos, truncation and padding ask for; in this thread.

        Args:
            text: Any text.
            special_tokens: Whether special tokens written in the text become their ids; else they are plain text.
        """
        return self._framed([super().encode(text, special_tokens=special_tokens)])[0]

    def _each(self, texts: Sequence[str], special_tokens: bool) -> list[list[int]]:
        return self._framed(super()._each(texts, special_tokens))

    def _framed(self, rows: list[list[int]]) -> list[list[int]]:
        if not self.settings:
            return rows
        room = None if not self.truncation or self._limit is None else self._limit - len(self._before + self._after)
        rows = [self._before + row[:room] + self._after for row in rows]
        if not self.padding:
            return rows
        length = self._limit if self.padding == "max_length" else max(map(len, rows), default=0)
        assert length is not None
        return [row + [self._pad_id] * (length - len(row)) for row in rows]


def _lossless(text: str) -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer.from_str(text)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def no_such_token(token: str, path: Path, vocabulary: Iterable[str]) -> DataError:
    """What is raised for a token that a tokenizer does not have."""
    close = difflib.get_close_matches(token, list(vocabulary), n=3, cutoff=0.5)
    remedy = f"the closest are {', '.join(map(repr, close))}" if close else "there is none like it"
    return DataError(f"token ({token!r}) must be one token of {path}; {remedy}")


def _back_to_back(rows: list[list[int]]) -> tuple[Ids, Lengths]:
    lengths = np.fromiter(map(len, rows), np.int64, len(rows))
    return np.fromiter(chain.from_iterable(rows), np.uint32, int(lengths.sum())), lengths


def _tokens(given: str | None, named: Any, known: Sequence[str]) -> Sequence[str]:
    """What to look for: the token that is asked for, or that the files name, or the well-known ones."""
    if given is not None:
        return (given,)
    text = named.get("content") if isinstance(named, dict) else named
    return (text,) if isinstance(text, str) else known


def named_in_folder(folder: Path) -> dict[str, Any]:
    """bos_token, eos_token, pad_token and model_max_length as the files beside a tokenizer name them."""
    found: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        try:
            content = json.loads((folder / name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(content, dict):
            found |= {key: value for key, value in content.items() if value is not None}
    return found


def _converted(folder: Path) -> str:
    """The tokenizer.json that transformers makes of the other files of a folder."""
    try:
        from transformers import AutoTokenizer
    except ImportError as error:
        raise DataError(
            f"tokenizer {folder} has no tokenizer.json, and its other files are read by transformers; "
            "pip install 'modlib[huggingface]'"
        ) from error
    try:
        loaded = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except Exception as error:  # whatever its many readers raise for files they do not understand
        raise DataError(
            f"tokenizer {folder} must have a tokenizer.json, or files that transformers reads; "
            f"{str(error).strip().splitlines()[0]}"
        ) from error
    backend = getattr(loaded, "backend_tokenizer", None)
    if backend is None:
        raise DataError(
            f"tokenizer {folder} ({type(loaded).__name__}) must be one of the tokenizers library; for a SentencePiece "
            "model use PretrainedSPTokenizer"
        )
    return str(backend.to_str())


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


def tokenizer_fingerprint(text: str) -> str:
    """SHA-256, in hex, of what a tokenizer.json means: the order of keys, spaces, truncation and padding do not count.

    Raises:
        ValueError: The text is not a JSON object.
    """
    content = json.loads(text)
    if not isinstance(content, dict):
        raise ValueError("it is not a JSON object")
    kept = {key: value for key, value in content.items() if key not in ("truncation", "padding")}
    return hashlib.sha256(json.dumps(kept, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


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
