"""Training windows of characters from one text file: the smallest language-modelling data there is."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from modlib.components import component
from modlib.data.cache import writable_cache
from modlib.data.datasets.windows import window_numbers
from modlib.data.text.sources import decoded
from modlib.runtime import durable
from modlib.runtime.errors import ConfigError, DataError, choice_problems, unreadable
from modlib.runtime.hub_names import hub_hint

Split = Literal["train", "validation", "all"]
MOST_CHARACTERS = 1 << 28  # four bytes of each are held while the file is read; larger texts belong in a packed file


@component("dataset", "characters")
class CharacterDataset:
    """Windows of seq_len + 1 characters from a UTF-8 text file, of which the first part is for training.

    The vocabulary is every character of the whole file, in the order of their code points; ids count from 0. With
    stride 1 there is a window at every place of the text, so that a shuffling sampler draws from all of them, each
    once per epoch; with stride seq_len every character but the first (and up to seq_len - 1 at the end) is a target
    once.

    Args:
        path: The text file.
        seq_len: Inputs per window, at least 1.
        split: "train" is the beginning of the text, "validation" the rest, "all" both.
        train_fraction: Share of the characters in "train", rounded down; above 0, below 1.
        stride: Characters between the starts of two windows, at least 1; None: seq_len.
        sha256: Of the file, in hex; another file is refused. None: any file.

    Raises:
        ConfigError: A number is out of range, or there is no such file.
        DataError: The file is not UTF-8, or another one than sha256 says, or shorter than one window.

    Source: karpathy/nanoGPT, data/shakespeare_char/prepare.py.
    """

    def __init__(
        self,
        *,
        path: str,
        seq_len: int,
        split: Split = "all",
        train_fraction: float = 0.9,
        stride: int | None = None,
        sha256: str | None = None,
    ) -> None:
        problems = choice_problems(split=(split, Split))
        if seq_len < 1:
            problems.append(f"seq_len ({seq_len}) must be at least 1; set SEQ_LEN")
        if not 0 < train_fraction < 1:
            problems.append(f"train_fraction ({train_fraction}) must be above 0 and below 1; set it to a share")
        if stride is not None and stride < 1:
            problems.append(f"stride ({stride}) must be at least 1; use None for windows that follow each other")
        if not Path(path).is_file():
            hint = hub_hint(path, "dataset")
            problems.append(f"path ('{path}') must be a text file; there is no file {Path(path).absolute()}{hint}")
        elif Path(path).stat().st_size > MOST_CHARACTERS:
            problems.append(
                f"size of '{path}' ({Path(path).stat().st_size} bytes) must be at most {MOST_CHARACTERS}; pack it with "
                "modlib data pack, and train with PackedDataset"
            )
        if problems:
            raise ConfigError(problems)
        self.path, self.seq_len, self.split = Path(path), seq_len, split
        self.stride = seq_len if stride is None else stride
        self.name = f"{os.fspath(path)}:{split}"
        try:
            with open(self.path, "rb") as file:
                contents = file.read(MOST_CHARACTERS)
        except OSError as error:
            raise unreadable(f"{path} cannot be read: {error.strerror}; check the path", error) from error
        text = decoded(contents, self.path)
        self.sha256 = hashlib.sha256(contents).hexdigest()
        if sha256 is not None and self.sha256 != sha256.lower():
            raise DataError(
                f"SHA-256 of {path} ({self.sha256}) must be {sha256.lower()}; it is another text than this experiment's"
            )
        points = np.frombuffer(text.encode("utf-32-le"), np.uint32)
        found, ids = np.unique(points, return_inverse=True)
        self.vocabulary = "".join(map(chr, found.tolist()))
        """Every character of the file; its place is its id."""
        cut = int(train_fraction * len(points))
        chosen = {"train": slice(0, cut), "validation": slice(cut, None), "all": slice(None)}[split]
        dtype = np.uint8 if len(found) <= 256 else np.uint16 if len(found) <= 65_536 else np.uint32
        self.ids: npt.NDArray[Any] = ids[chosen].astype(dtype)
        """The characters of this split."""
        self.bytes_per_token = len(text[chosen].encode("utf-8")) / max(len(self.ids), 1)
        if len(self.ids) < seq_len + 1:
            raise DataError(
                f"characters in {self.name} ({len(self.ids)}) must be at least seq_len + 1 ({seq_len + 1}) for one "
                "window; use more text or a shorter SEQ_LEN"
            )
        self._windows = np.lib.stride_tricks.sliding_window_view(self.ids, seq_len + 1)[:: self.stride]

    def __len__(self) -> int:
        return len(self._windows)

    def __getitem__(self, index: int) -> npt.NDArray[Any]:
        """Window `index`, (seq_len + 1,)."""
        count = len(self)
        if not -count <= index < count:
            raise IndexError(f"window ({index}) must be below the {count} windows of {self.name}")
        return self._windows[index]

    def __getitems__(self, indices: Sequence[int] | npt.NDArray[np.integer[Any]]) -> npt.NDArray[Any]:
        """Many windows at once, (B, seq_len + 1), in the narrowest type that holds the vocabulary.

        Raises:
            IndexError: An index is negative or beyond the last window.
        """
        return self._windows[window_numbers(indices, self)]

    @property
    def fingerprint(self) -> str:
        """Changes when the text or the way it is cut changes; the same on every machine."""
        place = f"{self.split}/characters={len(self.ids)}"
        return f"sha256:{self.sha256}/{place}/seq_len={self.seq_len}/stride={self.stride}"

    @property
    def num_tokens(self) -> int:
        """Targets in one epoch; with a stride below seq_len each character is several."""
        return len(self) * self.seq_len

    @property
    def num_documents(self) -> None:
        """A text is not in documents."""
        return None

    @property
    def tokenizer_fingerprint(self) -> str:
        """Of the tokenizer of characters; see `tokenizer_path`."""
        from modlib.data.text.tokenizer_fingerprint import tokenizer_fingerprint

        return tokenizer_fingerprint(character_tokenizer(self.vocabulary))

    @property
    def tokenizer_path(self) -> Path:
        """A tokenizer.json of the vocabulary, written to the cache on first use."""
        text = character_tokenizer(self.vocabulary)
        name = hashlib.sha256(text.encode()).hexdigest()[:16]
        path = writable_cache() / f"characters-{name}.tokenizer.json"
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            durable.atomic_write_text(path, text)
        return path

    def check_vocabulary(self, vocab_size: int) -> None:
        """Raise DataError when the model has fewer ids than the text has characters."""
        if len(self.vocabulary) > vocab_size:
            raise DataError(
                f"characters of {self.path} ({len(self.vocabulary)} different ones) must be at most the model's "
                f"vocab_size ({vocab_size}); set vocab_size to {len(self.vocabulary)}"
            )

    def check_unchanged(self) -> None:
        """Nothing to check: the text is in memory."""


def character_tokenizer(vocabulary: str) -> str:
    """A tokenizer.json that makes one token of each character.

    Args:
        vocabulary: The characters, in the order of their ids.
    """
    import tokenizers

    characters = tokenizers.models.WordLevel({character: place for place, character in enumerate(vocabulary)})
    tokenizer = tokenizers.Tokenizer(characters)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Split(tokenizers.Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = tokenizers.decoders.Fuse()
    return str(tokenizer.to_str())
