"""A HuggingFace tokenizer as a gin file names it: from local files, with or without added tokens."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from modlib.components import component
from modlib.data.corpora import corpus
from modlib.data.text.plain_text import Ids, Lengths, back_to_back
from modlib.data.text.token_choice import (
    BEGIN_OF_TEXT_TOKENS,
    END_OF_DOCUMENT_TOKENS,
    named_in_folder,
    text_of_named,
)
from modlib.data.text.tokenizer import Tokenizer
from modlib.runtime.errors import ConfigError, DataError, require_choices

Padding = Literal[False, True, "max_length"]


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
        bos_token: Its text; None takes the one that the folder's files name, or a well-known special one.
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
        padding: Padding = False,
    ) -> None:
        require_choices(padding=(padding, Padding))
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
        begin = bos_token or text_of_named(named.get("bos_token"))
        end = eos_token or text_of_named(named.get("eos_token"))
        pad = pad_token or text_of_named(named.get("pad_token")) or end
        self._before = [self._chosen("bos_token", begin, BEGIN_OF_TEXT_TOKENS)] if add_bos else []
        self._after = [self._chosen("eos_token", end, END_OF_DOCUMENT_TOKENS)] if add_eos else []
        self._pad_id = self._padding_id(pad) if padding else 0
        self._limit = self._checked_limit(truncation, padding, max_length, named.get("model_max_length"))
        self.truncation = truncation
        parts: dict[str, Any] = {"bos": self._before, "eos": self._after, "most": self._limit if truncation else None}
        if padding:
            parts |= {"padding": padding, "pad": [self._pad_id], "to": self._limit if padding == "max_length" else None}
        self.settings = ",".join(f"{name}={value}" for name, value in parts.items() if value)

    @property
    def begin_of_text_id(self) -> int | None:
        """The id that is put before every text; None without add_bos."""
        return self._before[0] if self._before else None

    def _padding_id(self, token: str | None) -> int:
        """Padding is no border of documents: an ordinary token is as good."""
        if token is not None and (found := self._tokenizer.token_to_id(token)) is not None:
            return int(found)
        return self._chosen("pad_token", token, END_OF_DOCUMENT_TOKENS)

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

    def encode_batch(self, texts: Sequence[str], *, special_tokens: bool = False) -> tuple[Ids, Lengths]:
        """Ids of many texts back to back, and the number of ids of each; as `encode` gives them."""
        ids, lengths = super().encode_batch(texts, special_tokens=special_tokens)
        if not self.settings:
            return ids, lengths
        rows = np.split(ids, np.cumsum(lengths)[:-1]) if len(lengths) else []
        return back_to_back(self._framed([row.tolist() for row in rows]))

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
