"""A SentencePiece model as a tokenizer, from its .model file."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import chain, groupby
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from modlib.components import component
from modlib.data.text.plain_text import Ids, Lengths, PlainTextError, back_to_back
from modlib.data.text.token_choice import (
    BEGIN_OF_TEXT_TOKENS,
    END_OF_DOCUMENT_TOKENS,
    choose_token,
    end_in_folder,
)
from modlib.data.text.tokenizer import (
    Spans,
    no_such_id,
    no_such_token,
)
from modlib.runtime.errors import ConfigError, DataError, unreadable


@component("tokenizer", "pretrained_sp_tokenizer", not_science=("num_threads",))
class PretrainedSPTokenizer:
    """A SentencePiece model from its file.

    Text is normalized as the model says, so that what comes back from decode may differ where the model folds
    characters (most fold Unicode compatibility forms and runs of spaces). Characters without a piece become bytes and
    come back whole where the model has byte fallback; else they become the unknown piece.

    Control pieces (as `<s>` usually is) are never read out of a text; pieces that the model declares as user-defined
    always are.

    Args:
        path: The .model file.
        add_bos: Whether ids begin with the beginning-of-text piece.
        add_eos: Whether ids end with the end-of-text piece.
        bos_token: Its text; None takes the model's, or a well-known one.
        eos_token: Its text; None likewise.
        num_threads: Threads of encode_batch; None takes all cores.

    Raises:
        ConfigError: sentencepiece is not installed, or num_threads is below 1.
        DataError: The file cannot be read, is not a SentencePiece model, or has no such piece.

    Source: Kudo and Richardson, SentencePiece, EMNLP 2018.
    """

    documents_end: int | None = None
    documents_begin: int | None = None

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        add_bos: bool = False,
        add_eos: bool = False,
        bos_token: str | None = None,
        eos_token: str | None = None,
        num_threads: int | None = None,
    ) -> None:
        if num_threads is not None and num_threads < 1:
            raise ConfigError(f"num_threads ({num_threads}) must be at least 1; use None for all cores")
        self.path = Path(path)
        self.num_threads = num_threads
        self._model = self._read(self.path)
        longest_first = sorted(self.special_tokens, key=len, reverse=True)
        self._control = {number for number in range(self.vocab_size) if self._model.is_control(number)}
        self._control_pattern = re.compile(f"({'|'.join(map(re.escape, longest_first)) or '(?!)'})")
        own = self._model.bos_id(), self._model.eos_id()
        self._before = [self._added_id("bos_token", bos_token, own[0], BEGIN_OF_TEXT_TOKENS)] if add_bos else []
        self._after = [self._added_id("eos_token", eos_token, own[1], END_OF_DOCUMENT_TOKENS)] if add_eos else []
        ends = (("bos", self._before), ("eos", self._after))
        self.settings = ",".join(f"{name}={ids}" for name, ids in ends if ids)

    def _read(self, path: Path) -> Any:
        try:
            import sentencepiece
        except ImportError as error:
            raise ConfigError(
                "PretrainedSPTokenizer needs the package sentencepiece; pip install 'modlib[sentencepiece]'"
            ) from error
        try:
            contents = path.read_bytes()
        except OSError as error:
            raise unreadable(
                f"tokenizer {path} cannot be read: {error.strerror}; check the path", error, "model"
            ) from error
        self.fingerprint = sentencepiece_fingerprint(contents)
        model = sentencepiece.SentencePieceProcessor()
        try:
            loaded = bool(contents) and model.LoadFromSerializedProto(contents)
        except RuntimeError:
            loaded = False
        if not loaded:
            raise DataError(f"tokenizer {path} must be a SentencePiece model; name the .model file")
        return model

    @property
    def vocab_size(self) -> int:
        """Every id is below it; control and user-defined pieces are counted."""
        return int(self._model.vocab_size())

    @property
    def begin_of_text_id(self) -> int | None:
        """The id that is put before every text; None without add_bos."""
        return self._before[0] if self._before else None

    def token_id(self, token: str) -> int:
        """The id of one piece.

        Raises:
            DataError: There is no such piece; the message names the closest ones.
        """
        found = self._find(token)
        if found is None:
            raise no_such_token(token, self.path, self._pieces())
        return found

    def token_text(self, token_id: int) -> str:
        """The piece of one id.

        Raises:
            DataError: There is no such id.
        """
        if not 0 <= int(token_id) < self.vocab_size:
            raise no_such_id(token_id, self)
        return str(self._model.id_to_piece(int(token_id)))

    def end_of_document_id(self, token: str | None = None) -> int:
        """The id that ends a document.

        Args:
            token: Its piece; None takes the model's own, or the first of END_OF_DOCUMENT_TOKENS that is a control
                piece, or else the eos_token of the folder, as `Tokenizer` does.

        Raises:
            DataError: There is no such piece; the message lists the model's control pieces.
        """
        if token is None and self.documents_end is not None:
            return self.documents_end
        own, (named, why_not) = self._model.eos_id(), (None, "")
        if token is None and own < 0 and not self.path.name.endswith(".tokenizer.model"):  # a copy beside packed data
            named, why_not = end_in_folder(self.path.parent)
        return self._chosen("end-of-document token", token, own, END_OF_DOCUMENT_TOKENS, named, why_not)

    def _added_id(self, what: str, token: str | None, own: int, known: Sequence[str]) -> int:
        """As `end_of_document_id`, but that a user-defined piece of a well-known name does: it was asked to add one."""
        try:
            return self._chosen(what, token, own, known)
        except ConfigError:
            ordinary = [one for one in known if self._find(one) is not None]
            if token is not None or not ordinary:
                raise
            return self._chosen(what, ordinary[0], own, known)

    def _chosen(
        self,
        what: str,
        token: str | None,
        own: int,
        known: Sequence[str],
        named: str | None = None,
        why_not: str = "",
    ) -> int:
        if token is None and own >= 0:
            token = self.token_text(own)
        return choose_token(
            self, what, self._find, token=token, known=known, named=named, kind="piece", why_not=why_not
        )

    def _find(self, token: str) -> int | None:
        found = int(self._model.piece_to_id(token))  # the unknown piece's id when there is none
        return found if self._model.id_to_piece(found) == token else None

    def _pieces(self) -> list[str]:
        return [self._model.id_to_piece(number) for number in range(self.vocab_size)]

    def is_special(self, token_id: int) -> bool:
        """Whether an id is a control piece or the unknown one, which stand for no text."""
        number = int(token_id)
        return 0 <= number < self.vocab_size and bool(self._model.is_control(number) or self._model.is_unknown(number))

    @property
    def special_tokens(self) -> list[str]:
        """The control pieces, in the order of their ids."""
        return [piece for number, piece in enumerate(self._pieces()) if self._model.is_control(number)]

    @property
    def added_tokens(self) -> list[str]:
        """The control pieces, and those that the model was trained to leave whole (`user_defined_symbols`)."""
        from sentencepiece import sentencepiece_model_pb2 as protocol

        model: Any = vars(protocol)["ModelProto"]()  # the class is made as the module is imported
        model.ParseFromString(self._model.serialized_model_proto())
        kinds = (model.SentencePiece.CONTROL, model.SentencePiece.USER_DEFINED)
        return [one.piece for one in model.pieces if one.type in kinds]

    def encode(self, text: str, *, special_tokens: bool = False) -> list[int]:
        """Ids of one text, with what add_bos and add_eos ask for.

        Args:
            text: Any text.
            special_tokens: Whether control pieces written in the text become their ids; else they are plain text.

        Raises:
            PlainTextError: The library read a control piece out of plain text.
        """
        (ids,) = self._rows([text], special_tokens, threads=1)
        return ids

    def encode_batch(self, texts: Sequence[str], *, special_tokens: bool = False) -> tuple[Ids, Lengths]:
        """Ids of many texts back to back, and the number of ids of each; on num_threads threads."""
        rows = self._rows(list(texts), special_tokens, self.num_threads or len(os.sched_getaffinity(0)))
        return back_to_back(rows)

    def encode_with_spans(self, texts: Sequence[str]) -> list[tuple[Ids, Spans]]:
        """Of each text its ids, control pieces read, nothing added; and where each token begins and ends in it."""
        return [self._with_spans(text) for text in texts]

    def _with_spans(self, text: str) -> tuple[Ids, Spans]:
        ids: list[int] = []
        spans: list[tuple[int, int]] = []
        place = 0
        for number, part in enumerate(self._control_pattern.split(text)):  # as _rows does
            if number % 2:
                ids.append(self.token_id(part))
                spans.append((place, place + len(part)))
            elif part:
                for token, begin, end in self._pieces_of(part):
                    ids.append(token)
                    spans.append((place + begin, place + end))
            place += len(part)
        return np.array(ids, np.uint32), np.array(spans, np.int64).reshape(-1, 2)

    def _pieces_of(self, text: str) -> Iterator[tuple[int, int, int]]:
        """Id of each piece, its first character, and behind its last."""
        if hasattr(self._model, "EncodeAsOffsetMapping"):
            found = self._model.encode(text, return_type="offset_mapping")
            return ((token, *span) for token, span in zip(found["ids"], found["offsets"], strict=True))
        found = self._model.encode(text, out_type="immutable_proto")  # up to version 0.2.1
        return ((piece.id, piece.begin, piece.end) for piece in found.pieces)

    def _rows(self, texts: list[str], special_tokens: bool, threads: int) -> list[list[int]]:
        """Ids of each text, with what add_bos and add_eos ask for.

        Where control pieces are read, texts are cut at them first (the longest of several counts), and all the plain
        parts of all texts are one batch.
        """
        # of each text its plain parts, with the control pieces between them
        parts = [self._control_pattern.split(text) if special_tokens else [text] for text in texts]
        plain = [part for row in parts for part in row[::2]]
        encode = partial(self._model.encode, out_type=int)
        encoded = iter(encode(plain, num_threads=threads) if threads > 1 else map(encode, plain))  # one: in this thread
        rows = []
        for row, text in zip(parts, texts, strict=True):
            ids = [[self.token_id(part)] if number % 2 else next(encoded) for number, part in enumerate(row)]
            together = [*chain.from_iterable(ids)]
            if not special_tokens and not self._control.isdisjoint(together):
                raise PlainTextError(f"has a control piece of {self.path}, whose id no text may become ({text[:80]!r})")
            rows.append([*self._before, *together, *self._after])
        return rows

    def decode(self, ids: Sequence[int] | npt.NDArray[np.integer[Any]], *, skip_special_tokens: bool = False) -> str:
        """The text of these ids; control pieces are shown unless skipped.

        Raises:
            DataError: An id is not in the vocabulary.
        """
        numbers: list[int] = np.asarray(ids, dtype=np.int64).tolist()
        wrong = [number for number in numbers if not 0 <= number < self.vocab_size]
        if wrong:
            raise DataError(f"token id ({wrong[0]}) must be below vocab_size ({self.vocab_size}); check the model")
        kept = [number for number in numbers if not (skip_special_tokens and self.is_special(number))]
        parts = []
        for control, group in groupby(kept, self._model.is_control):
            run = list(group)
            parts.append("".join(map(self._model.id_to_piece, run)) if control else str(self._model.decode(run)))
        return "".join(parts)


def sentencepiece_fingerprint(contents: bytes) -> str:
    """SHA-256, in hex, of a .model file: equal for equal models."""
    return hashlib.sha256(contents).hexdigest()
