"""How plain text is encoded so that no special id comes out of it, whatever the model has in its vocabulary.

The tokenizers library can be told not to read special tokens out of a text, but the model itself may hold their texts:
Unigram finds `</s>` as the best piece of all, WordLevel and WordPiece as a word, BPE with `ignore_merges` as a whole
word. Ids are therefore checked after encoding. A text that gave a special id is encoded once more by the same tokenizer
with those texts out of its reach: it becomes ordinary pieces, as with SentencePiece, where control pieces are in no
lattice.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tokenizers

from modlib.data.text.token_choice import END_OF_DOCUMENT_TOKENS
from modlib.runtime.errors import DataError
from modlib.runtime.json_files import parse_json

Ids = npt.NDArray[np.uint32]
Lengths = npt.NDArray[np.int64]

_NO_TEXT = (
    "\U0010fffe\U0010ffff"  # noncharacters: text that had them and a number would give a special id, and is refused
)


_MOST_RUNS = 3  # of special ids that follow each other; up to so many, comparing is faster than looking each id up


class PlainTextError(DataError):
    """A text that cannot be encoded as plain text.

    Args:
        reason: Completes "text ..." and "line 3 ...".
    """

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(f"text {reason}; write it otherwise, or leave it out")

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self), (self.reason,))


class PlainText:
    """Encodes plain text with a tokenizer of the tokenizers library. Does not survive pickling; is made anew instead.

    Args:
        library: The tokenizer, told to encode special tokens as text; without truncation and padding.
        path: Its file, for messages.
        vocab_size: All its ids are below it.
    """

    def __init__(self, library: tokenizers.Tokenizer, path: Path, vocab_size: int) -> None:
        self._library, self.path = library, path
        added = library.get_added_tokens_decoder()
        self._special = {number: token.content for number, token in added.items() if token.special}
        self._kind = type(library.model).__name__
        self._encoder = library
        self._spellings: dict[int, bool] = {}
        # An unknown character gives the unknown token's id as well, so that this id alone says nothing.
        known = self._unknown not in self._special or self._special[self._unknown] in END_OF_DOCUMENT_TOKENS
        self._never = set(self._special) - (set() if known else {self._unknown})
        self._watched = set(self._never)
        if self._special and self._kind == "Unigram" and all(map(self._is_spelled, self._special)):
            self._encoder = self._speller  # its vocabulary has them all: nothing would be encoded twice
        elif self._unknown in self._special and self._unknown in self._ids_of(self._special[self._unknown]):
            self._watched |= {self._unknown} if self._is_spelled(self._unknown) else set()
        self._is_watched = np.zeros(vocab_size, bool)
        self._is_watched[list(self._watched)] = True
        borders = np.flatnonzero(np.diff(self._is_watched, prepend=False, append=False)).reshape(-1, 2)
        self._runs = [(np.uint32(first), np.uint32(behind - 1 - first)) for first, behind in borders.tolist()]

    @cached_property
    def _speller(self) -> tokenizers.Tokenizer:
        """The tokenizer with the texts of special tokens out of reach, made when it is first needed."""
        content = self._content
        del self._content  # large, and changed now
        return _without_special_texts(content, self._special)

    @cached_property
    def _content(self) -> dict[str, Any]:
        """The tokenizer.json."""
        return parse_json(self._library.to_str(), dict[str, Any], place="tokenizer")

    @cached_property
    def _unknown(self) -> int | None:
        """The id of what the vocabulary does not have; None as well where nothing is special."""
        if not self._special:
            return None
        if self._kind == "Unigram":
            found: int | None = self._content["model"].get("unk_id")
            return found
        token = self._library.model.unk_token
        return None if token is None else self._library.token_to_id(token)

    def encode(self, text: str) -> list[int]:
        """Ids of one text; in this thread.

        Raises:
            PlainTextError: Other tokens cannot spell a special token in it, or the library cannot encode it.
        """
        ids: list[int] = self._encoded(self._encoder, text).ids
        return ids if self._watched.isdisjoint(ids) else self.spelled(text)

    def encode_batch(self, texts: Sequence[str]) -> tuple[Ids, Lengths]:
        """Ids of many texts back to back, and the number of ids of each; on all cores.

        Raises:
            PlainTextError: As `encode` does, of the first such text.
        """
        try:
            encodings = self._encoder.encode_batch_fast(list(texts), add_special_tokens=False)
        except Exception:  # which does not say of which text
            return back_to_back([self.encode(text) for text in texts])
        return self.checked(texts, *back_to_back([encoding.ids for encoding in encodings]))

    def checked(self, texts: Sequence[str], ids: Ids, lengths: Lengths) -> tuple[Ids, Lengths]:
        """The ids that an engine gave, those of texts with a special id among them replaced by what `spelled` gives."""
        if not self.any_watched(ids):
            return ids, lengths
        special = self._is_watched[ids]
        rows = np.split(ids, np.cumsum(lengths)[:-1])
        of_row = np.split(special, np.cumsum(lengths)[:-1])
        return back_to_back(
            [
                self.spelled(text) if some.any() else row.tolist()
                for text, row, some in zip(texts, rows, of_row, strict=True)
            ]
        )

    def any_watched(self, ids: Ids) -> bool:
        """Whether a special id is among these."""
        if len(self._runs) > _MOST_RUNS:
            return bool(self._is_watched[ids].any())
        # In the unsigned numbers, what is below the first of a run is far above it: one comparison does for both ends.
        return any(bool((ids - first <= span).any()) for first, span in self._runs)

    def check_read(self, text: str, ids: Ids, spans: npt.NDArray[np.int64]) -> None:
        """Refuse special ids that stand where the text has no such token as its file writes it.

        Where special tokens are read, a normalizer can make one of what is none to a look at the text: `<eod>` is
        `<EOD>` in small letters.

        Raises:
            PlainTextError: There is one.
        """
        if not self.any_watched(ids):
            return
        for place in np.flatnonzero(self._is_watched[ids]).tolist():
            begin, end = spans[place].tolist()
            content = self._special[int(ids[place])]
            if text[begin:end].strip() != content.strip():
                raise PlainTextError(
                    f"has {text[begin:end]!r}, which {self.path} would read as its special token {content}"
                )

    def spelled(self, text: str) -> list[int]:
        """Ids of a text that gave a special id: what spells one becomes ordinary pieces.

        Raises:
            PlainTextError: The vocabulary has none for it.
        """
        there = self._watched.intersection(self._ids_of(text, self._encoder))
        for number in sorted(there):
            if not self._is_spelled(number):
                raise self._refused(number)
        ids: list[int] = self._encoded(self._speller, text).ids
        if left := self._never.intersection(ids):
            raise self._refused(min(left))
        return ids

    def _refused(self, number: int) -> PlainTextError:
        return PlainTextError(
            f"has the special token {self._special[number]}, whose id no text may become, and which no other tokens of "
            f"{self.path} spell"
        )

    def _is_spelled(self, number: int) -> bool:
        """Whether other tokens spell the text of a special one: each character has one, not all are the unknown one."""
        if number not in self._spellings:
            self._spellings[number] = self._spelled_by_others(self._special[number])
        return self._spellings[number]

    def _spelled_by_others(self, text: str) -> bool:
        try:
            encoding = self._speller.encode(text, add_special_tokens=False)
        except Exception:  # there is no unknown token
            return False
        nothing = {self._unknown, *self._ids_of(_NO_TEXT[0], self._speller)}  # what Metaspace puts before any text, too
        pieces = set(encoding.ids) - nothing
        covered = {place for begin, end in encoding.offsets for place in range(begin, end)}
        missing = any(place not in covered and not one.isspace() for place, one in enumerate(text))
        return bool(pieces) and not missing and pieces.isdisjoint(self._special)

    def _ids_of(self, text: str, encoder: tokenizers.Tokenizer | None = None) -> list[int]:
        try:
            ids: list[int] = (encoder or self._library).encode(text, add_special_tokens=False).ids
        except Exception:  # there is no unknown token
            return []
        return ids

    def _encoded(self, encoder: tokenizers.Tokenizer, text: str) -> Any:
        try:
            return encoder.encode(text, add_special_tokens=False)
        except Exception as error:  # the library raises plain Exception
            raise PlainTextError(f"cannot be encoded by {self.path} ({error})") from error


def back_to_back(rows: list[list[int]]) -> tuple[Ids, Lengths]:
    """The ids of all rows in one array, and the length of each."""
    lengths = np.fromiter(map(len, rows), np.int64, len(rows))
    return np.fromiter(chain.from_iterable(rows), np.uint32, int(lengths.sum())), lengths


def _without_special_texts(content: dict[str, Any], special: dict[int, str]) -> tokenizers.Tokenizer:
    """The tokenizer of a tokenizer.json, which is changed: no text has what stands for special tokens then.

    Every id keeps its place. The unknown token of a model that looks words up keeps its text, which gives the unknown
    id either way.
    """
    model = content["model"]
    kind = model.get("type", "BPE")
    kept = {model.get("unk_token")} if kind in ("WordLevel", "WordPiece") else set()
    other = {one: f"{_NO_TEXT}{number}" for number, one in special.items() if one not in kept}
    for added in content["added_tokens"]:
        if added["special"] and added["content"] in other:
            added["content"] = other[added["content"]]
            added |= {"normalized": False, "single_word": False, "lstrip": False, "rstrip": False}
    if kind == "Unigram":
        model["vocab"] = [[other.get(piece, piece), score] for piece, score in model["vocab"]]
    else:
        model["vocab"] = {other.get(token, token): number for token, number in model["vocab"].items()}
        if model.get("unk_token") in other:
            model["unk_token"] = other[model["unk_token"]]
    if kind == "BPE":
        model["merges"] = _ordinary_merges(model, other)
    content["post_processor"] = None  # it adds special tokens, which plain encoding does not ask for
    library = tokenizers.Tokenizer.from_str(json.dumps(content))
    library.no_truncation()
    library.no_padding()
    library.encode_special_tokens = True
    return library


def _ordinary_merges(model: dict[str, Any], special: dict[str, str]) -> list[Any]:
    """The merges in which no special token is made or taken."""
    prefix = len(model.get("continuing_subword_prefix") or "")
    kept = []
    for merge in model["merges"]:
        one, two = merge.split(" ") if isinstance(merge, str) else merge
        if special.keys().isdisjoint((one, two, one + two, one + two[prefix:])):
            kept.append(merge)
    return kept
