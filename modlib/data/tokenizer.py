"""A tokenizer read from its tokenizer.json: nothing is downloaded, no code is run."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

# The library warns in every process forked after it used threads (loader workers) unless this is set. Workers do not
# tokenize, so keeping its threads on is safe.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")

import tokenizers

from modlib.runtime.errors import DataError

END_OF_DOCUMENT_TOKENS = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>")
"""Tried in this order when no end-of-document token is named."""


class Tokenizer:
    """Text to token ids and back.

    Truncation and padding that the file may ask for are switched off: a corpus must lose nothing.

    Args:
        path: A tokenizer.json, or a folder with one.

    Raises:
        DataError: There is no such file, or it is not a tokenizer.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path) / "tokenizer.json" if Path(path).is_dir() else Path(path)
        try:
            text = self.path.read_text(encoding="utf-8")
            self.fingerprint = tokenizer_fingerprint(text)
            self._tokenizer = tokenizers.Tokenizer.from_str(text)
        except OSError as error:
            raise DataError(f"tokenizer {self.path} cannot be read: {error.strerror}; check the path") from error
        except Exception as error:  # the library raises plain Exception for a file it does not understand
            raise DataError(
                f"tokenizer {self.path} must be a tokenizer.json of the tokenizers library; {error}"
            ) from error
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tokenizer.encode_special_tokens = True  # "<|endoftext|>" written in a text is text, not the end of it

    @property
    def vocab_size(self) -> int:
        """Every id is below it; tokens added later are counted."""
        return max(self._tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1

    def token_id(self, token: str) -> int | None:
        """The id of one token, None when there is no such token."""
        return self._tokenizer.token_to_id(token)

    def end_of_document_id(self, token: str | None = None) -> int:
        """The id that ends a document.

        Args:
            token: Its text; None takes the first of END_OF_DOCUMENT_TOKENS that the tokenizer has.

        Raises:
            DataError: The tokenizer has no such token; the message lists its special tokens.
        """
        wanted = END_OF_DOCUMENT_TOKENS if token is None else (token,)
        for candidate in wanted:
            found = self.token_id(candidate)
            if found is not None:
                return found
        special = [added.content for added in self._tokenizer.get_added_tokens_decoder().values() if added.special]
        raise DataError(
            f"end-of-document token ({' or '.join(wanted)}) must be a token of {self.path}; "
            f"name one of its special tokens: {', '.join(special[:20]) or 'it has none'}"
        )

    def encode(self, text: str, *, special_tokens: bool = False) -> list[int]:
        """Ids of one text, with nothing added before or after.

        Args:
            text: Any text.
            special_tokens: Whether special tokens written in the text become their ids; else they are plain text.
        """
        if not special_tokens:
            return list(self._tokenizer.encode(text, add_special_tokens=False).ids)
        self._tokenizer.encode_special_tokens = False
        try:
            return list(self._tokenizer.encode(text, add_special_tokens=False).ids)
        finally:
            self._tokenizer.encode_special_tokens = True

    def encode_batch(self, texts: Sequence[str]) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.int64]]:
        """Ids of many texts back to back, and the number of ids of each; on all cores."""
        encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        ids = [encoding.ids for encoding in encodings]
        lengths = np.fromiter(map(len, ids), np.int64, len(ids))
        return np.fromiter(chain.from_iterable(ids), np.uint32, int(lengths.sum())), lengths

    def decode(self, ids: Sequence[int] | npt.NDArray[np.integer[Any]], *, skip_special_tokens: bool = False) -> str:
        """The text of these ids; special tokens are shown unless skipped."""
        return str(self._tokenizer.decode(np.asarray(ids).tolist(), skip_special_tokens=skip_special_tokens))


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
