"""Small data of the tests' own: a packed file of counted tokens, a tokenizer trained on a few sentences."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from modlib.data.packed.writer import PackedFileWriter
from modlib.data.text.tokenizer import Tokenizer, train_byte_level_bpe

SENTENCES = [
    "the quick brown fox jumps over the lazy dog",
    "a tokenizer that is trained on three sentences knows few words",
    "naïve café, 東京, 🙂 and\ttabs\n\nand blank lines",
]

MakePacked = Callable[..., Path]


@pytest.fixture
def make_packed(tmp_path: Path) -> MakePacked:
    """make_packed(num_tokens, vocab_size=60_000): a packed file in which token i is i (modulo vocab_size).

    With loss_mask=True, multiples of 3 are trained.
    """

    def make(num_tokens: int, vocab_size: int = 60_000, name: str = "data.packed", **settings: object) -> Path:
        path = tmp_path / name
        with PackedFileWriter(path, vocab_size=vocab_size, overwrite=True, **settings) as writer:  # type: ignore[arg-type]
            tokens = np.arange(num_tokens) % vocab_size
            writer.write(tokens, 3 * num_tokens, tokens % 3 == 0 if writer.has_loss_mask else None)
        return path

    return make


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """A byte-level BPE of at most 320 tokens; any text survives it."""
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    return train_byte_level_bpe(SENTENCES * 3, path, vocab_size=320, end_of_document="<|endoftext|>")
