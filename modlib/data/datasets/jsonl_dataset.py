"""Documents of a JSONL file, read and tokenized as they are asked for."""

from __future__ import annotations

import logging
import os
import secrets
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from modlib.components import component
from modlib.data.corpora import corpus
from modlib.data.datasets.document_windows import LongDocuments
from modlib.data.datasets.jsonl_index import JSONLFile, JSONLIndex, OnBadLine, hash_of, load_or_build
from modlib.data.datasets.windows import Windows, padded
from modlib.data.packed.file import PackedFile
from modlib.data.text.fields import text_of
from modlib.data.text.tokenizer import TextTokenizer, Tokenizer
from modlib.runtime import durable
from modlib.runtime.errors import ConfigError, DataError, require_choices

logger = logging.getLogger("modlib")

_REMEMBERED_TOKENS = 1 << 22  # 16 MiB of long documents: they need not be tokenized again for each of their samples


@component("dataset", "mem_map_dataset")
class JSONLDataset:
    """One document per sample from a JSONL file, tokenized on the fly and padded to seq_len + 1 tokens.

    Every line is a JSON object with a text in it. A document is its text's tokens and the end-of-document token; its
    first token is never a target. Documents are not mixed within a sample.

    Nothing is dropped in silence. A document of more than seq_len + 1 tokens is, as long_documents says, "cut" into
    samples that start seq_len tokens apart, so that each of its tokens but the first is a target once; or "truncate":
    its end is left out, and `num_truncated_tokens` counts it; or "refuse". Blank lines are no documents; documents
    without a token have no target and give no sample (`num_empty`). Lines that are no document are an error with their
    number, or left out and counted in `num_skipped`.

    The first time, the whole file is read and tokenized once on all cores, to know its documents, tokens and largest
    id; the counts are kept in $MODLIB_CACHE or ~/.cache/modlib. For large data, pack it instead: tokenizing again and
    again costs time, a packed file none.

    Args:
        jsonl_path: The file, or a corpus such as "stdlib:train", which is then written as a JSONL file to the cache.
        tokenizer: Returns the tokenizer; one that pads, truncates or ends documents itself is refused.
        seq_len: Targets per sample, at least 1.
        key: Where the text is: names of fields joined by dots, such as "text", "a.b.c" or "messages.0.content".
        end_of_document: Text of the token that ends a document; None takes the tokenizer's.
        special_tokens: Whether special tokens written in a text become their ids, as markers of a chat do; else they
            are plain text.
        long_documents: See above.
        on_bad_line: Whether a line that is no document is an error ("raise") or left out ("skip").

    Raises:
        ConfigError: seq_len is below 1, or the tokenizer does what the dataset does.
        DataError: The file cannot be read, a line is no document, or there is no target in it.
    """

    def __init__(
        self,
        *,
        jsonl_path: str,
        tokenizer: Callable[[], Any],
        seq_len: int,
        key: str = "text",
        end_of_document: str | None = None,
        special_tokens: bool = False,
        long_documents: LongDocuments = "cut",
        on_bad_line: OnBadLine = "raise",
    ) -> None:
        require_choices(long_documents=(long_documents, LongDocuments), on_bad_line=(on_bad_line, OnBadLine))
        if seq_len < 1:
            raise ConfigError(f"seq_len ({seq_len}) must be at least 1; set SEQ_LEN")
        self.name = os.fspath(jsonl_path)
        self.seq_len = seq_len
        self.key = key
        self.special_tokens = special_tokens
        self.long_documents = long_documents
        self.tokenizer: TextTokenizer = tokenizer()
        if getattr(self.tokenizer, "truncation", False) or getattr(self.tokenizer, "padding", False):
            raise ConfigError(
                f"tokenizer of {self.name} (truncation or padding) must neither cut nor pad, which the dataset does by "
                "long_documents; leave truncation and padding out"
            )
        self.end_id = self.tokenizer.end_of_document_id(end_of_document)
        if self.tokenizer.encode("a")[-1:] == [self.end_id]:
            raise ConfigError(
                f"tokenizer of {self.name} (add_eos) must not add the end-of-document token, which the dataset does; "
                "leave add_eos out"
            )
        self.file = JSONLFile(_as_jsonl(self.name) if self.name in corpus.NAMES else Path(self.name))
        self.index, self.sha256 = load_or_build(
            self.file, self.tokenizer, key=key, special_tokens=special_tokens, on_bad_line=on_bad_line
        )
        self._lay_out(self.index)
        self._documents: OrderedDict[int, npt.NDArray[np.int32]] = OrderedDict()
        self._remembered = 0

    def _lay_out(self, index: JSONLIndex) -> None:
        """Samples per document, and what is left out."""
        targets = index.num_tokens  # with the end-of-document token there is one token more than targets
        long = targets > self.seq_len
        if self.long_documents == "refuse" and long.any():
            number = int(np.flatnonzero(long)[0])
            raise DataError(
                f"tokens of document {number} of {self.file.path} ({targets[number] + 1}) must be at most seq_len + 1 "
                f"({self.seq_len + 1}); set long_documents = 'cut' or 'truncate', or a longer SEQ_LEN"
            )
        samples = -(-targets // self.seq_len)
        self.num_truncated_tokens = 0
        if self.long_documents == "truncate":
            self.num_truncated_tokens = int((targets - self.seq_len)[long].sum())
            samples = np.minimum(samples, 1)
        self.num_empty = int((targets == 0).sum())
        self._first_sample = np.concatenate([[0], np.cumsum(samples)])
        self._num_targets = int(targets.sum()) - self.num_truncated_tokens
        if not len(self):
            raise DataError(f"documents in {self.file.path} ({len(index)}) must have a token at '{self.key}'; check it")
        left_out = {
            "tokens beyond seq_len (long_documents = 'truncate')": self.num_truncated_tokens,
            "documents without a token": self.num_empty,
            "lines that are no document": index.num_skipped,
        }
        if any(left_out.values()):
            said = ", ".join(f"{number:,} {what}" for what, number in left_out.items() if number)
            logger.warning("%s: left out are %s", self.name, said)

    def __getstate__(self) -> dict[str, Any]:  # what is remembered is only a cache
        return vars(self) | {"_documents": OrderedDict(), "_remembered": 0}

    @property
    def end_of_document_id(self) -> int:
        """The token that ends each document."""
        return self.end_id

    def __len__(self) -> int:
        return int(self._first_sample[-1])

    def __getitem__(self, index: int) -> Windows:
        """Sample `index`, (seq_len + 1,) int32, with what is padding in it."""
        count = len(self)
        if not -count <= index < count:
            raise IndexError(f"sample ({index}) must be below the {count} samples of {self.name}")
        return self.__getitems__([index % count]).row(0)

    def __getitems__(self, indices: Sequence[int] | npt.NDArray[np.integer[Any]]) -> Windows:
        """Many samples at once, (B, seq_len + 1) int32.

        Raises:
            IndexError: An index is negative or beyond the last sample.
        """
        wanted = np.asarray(indices, dtype=np.int64)
        if wanted.size and (wanted.min() < 0 or wanted.max() >= len(self)):
            raise IndexError(f"samples ({wanted.min()} to {wanted.max()}) must be 0 to {len(self) - 1} of {self.name}")
        documents = np.searchsorted(self._first_sample, wanted, side="right") - 1
        starts = (wanted - self._first_sample[documents]) * self.seq_len
        rows = [
            self._tokens(document)[start : start + self.seq_len + 1]
            for document, start in zip(documents.tolist(), starts.tolist(), strict=True)
        ]
        return padded(rows, self.seq_len + 1, self.end_id, wanted)

    def _tokens(self, number: int) -> npt.NDArray[np.int32]:
        """A document with its end, tokenized now or a moment ago."""
        tokens = self._documents.get(number)
        if tokens is None:
            tokens = self._tokenized(number)
            if len(tokens) > self.seq_len + 1:
                self._documents[number] = tokens
                self._remembered += len(tokens)
                while self._remembered > _REMEMBERED_TOKENS:
                    self._remembered -= len(self._documents.popitem(last=False)[1])
        return tokens

    def _tokenized(self, number: int) -> npt.NDArray[np.int32]:
        start, length = int(self.index.starts[number]), int(self.index.lengths[number])
        # One text at a time: a loader worker that was forked must not use the tokenizer's threads.
        counted = int(self.index.num_tokens[number])
        try:
            text = text_of(self.file.bytes[start : start + length], self.key)
            ids = self.tokenizer.encode(text, special_tokens=self.special_tokens)
        except ValueError as error:
            raise self._changed(number, str(error)) from error
        if len(ids) != counted:
            raise self._changed(number, f"has {len(ids)} tokens, not the {counted} that were counted")
        return np.array([*ids, self.end_id], np.int32)

    def _changed(self, number: int, problem: str) -> DataError:
        return DataError(
            f"document {number} of {self.file.path} {problem}; the file was changed during the run: restore it"
        )

    @property
    def fingerprint(self) -> str:
        """Changes when the texts, the tokenizer or the way samples are made change; the same on every machine."""
        made = self.tokenizer.fingerprint[:16] + (f"({self.tokenizer.settings})" if self.tokenizer.settings else "")
        settings = f"key={self.key}/end={self.end_id}/special={int(self.special_tokens)}/{self.long_documents}"
        skipped = f"/skipped={self.index.num_skipped}" if self.index.num_skipped else ""
        return f"jsonl:{self.sha256}/tokenizer={made}/{settings}/seq_len={self.seq_len}{skipped}"

    @property
    def bytes_per_token(self) -> float:
        """UTF-8 bytes of text per token, end-of-document tokens included."""
        return self.index.num_bytes_of_text / (int(self.index.num_tokens.sum()) + len(self.index))

    @property
    def num_tokens(self) -> int:
        """Targets in one epoch; padding is none."""
        return self._num_targets

    @property
    def num_documents(self) -> int:
        """Documents in the file."""
        return len(self.index)

    @property
    def num_skipped(self) -> int:
        """Lines that are no document and were left out."""
        return self.index.num_skipped

    @property
    def tokenizer_fingerprint(self) -> str:
        """Of the tokenizer in use."""
        return self.tokenizer.fingerprint

    @property
    def tokenizer_path(self) -> Path | None:
        """The file of the tokenizer in use; None for one that was made of a folder's other files."""
        path = self.tokenizer.path
        return path if path.is_file() else None

    def check_vocabulary(self, vocab_size: int) -> None:
        """Refuse texts with ids that the model does not have; every id was seen when the file was first read.

        Raises:
            DataError: An id, or the end-of-document id, is not below vocab_size.
        """
        largest = max(self.index.max_token_id, self.end_id)
        if largest >= vocab_size:
            raise DataError(
                f"largest token id in {self.file.path} ({largest}) must be below the model's vocab_size "
                f"({vocab_size}); set vocab_size to at least {self.tokenizer.vocab_size}, or use the model's tokenizer"
            )

    def check_tokenizer(self, fingerprint: str) -> None:
        """Refuse another tokenizer than the one in use.

        Raises:
            DataError: The fingerprints differ.
        """
        if self.tokenizer_fingerprint != fingerprint:
            raise DataError(
                f"tokenizer of {self.name} ({self.tokenizer_fingerprint[:12]}) must be the tokenizer in use "
                f"({fingerprint[:12]}); set JSONLDataset.tokenizer to the one the other data was made with"
            )

    def check_unchanged(self) -> None:
        """Raise DataError when the file was changed since it was opened."""
        self.file.check_unchanged(self.sha256)


def _as_jsonl(name: str) -> Path:
    """An embedded corpus as a JSONL file beside its packed file; written when it is not there whole."""
    import json

    packed = PackedFile(corpus.prepare(name))
    path = packed.path.with_suffix(".jsonl")
    hash_path = path.with_name(f"{path.name}.sha256")
    if hash_path.is_file() and path.is_file():
        if hash_of(JSONLFile(path)) == hash_path.read_text(encoding="utf-8", errors="replace"):
            return path
        logger.warning("cached corpus is damaged and is made again: %s", path)
    tokenizer = Tokenizer(packed.path.with_name("tokenizer.json"))
    aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with open(aside, "w", encoding="utf-8") as file:
            for number in range(packed.num_documents):
                text = tokenizer.decode(packed.document(number)[:-1])  # without its end-of-document token
                file.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
        sha256 = JSONLFile(aside).sha256()
        os.replace(aside, path)
        durable.atomic_write_text(hash_path, sha256)
    except OSError as error:
        aside.unlink(missing_ok=True)
        raise DataError(f"{path} cannot be written: {error.strerror}; free space or set MODLIB_CACHE") from error
    return path
