"""Windows of characters: a text, its vocabulary, its two parts, and what is refused."""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from modlib.data.datasets.characters import CharacterDataset
from modlib.runtime.errors import ConfigError, DataError

TEXT = "First: Bürger,\n\nhear me.\n" * 40
SHAKESPEARE = Path(__file__).parents[4] / "shared" / "data" / "tinyshakespeare" / "input.txt"


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("MODLIB_CACHE", str(tmp_path / "cache"))
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    return str(tmp_path / "text.txt")


def test_ids_are_places_in_the_sorted_vocabulary_and_the_parts_make_the_whole(path: str) -> None:
    train = CharacterDataset(path=path, seq_len=8, split="train")
    validation = CharacterDataset(path=path, seq_len=8, split="validation")
    assert train.vocabulary == "".join(sorted(set(TEXT)))
    joined = np.concatenate([train.ids, validation.ids])
    assert "".join(train.vocabulary[number] for number in joined) == TEXT
    assert len(train.ids) == int(0.9 * len(TEXT))
    assert train.ids.dtype == np.uint8


@pytest.mark.parametrize("stride", [None, 1, 3])
def test_windows_start_a_stride_apart(path: str, stride: int | None) -> None:
    data = CharacterDataset(path=path, seq_len=8, stride=stride)
    step = stride or 8
    starts = range(0, len(TEXT) - 8, step)
    assert len(data) == len(starts)
    batch = data.__getitems__(np.arange(len(data)))
    for row, start in zip(batch, starts, strict=True):
        assert "".join(data.vocabulary[number] for number in row) == TEXT[start : start + 9]
    assert np.array_equal(data[len(data) - 1], batch[-1])


def test_bytes_per_token_and_the_fingerprint_are_of_this_part(path: str) -> None:
    train = CharacterDataset(path=path, seq_len=8, split="train")
    part = TEXT[: int(0.9 * len(TEXT))]
    assert train.bytes_per_token == len(part.encode()) / len(part)
    others = [CharacterDataset(path=path, seq_len=8), CharacterDataset(path=path, seq_len=8, split="train", stride=1)]
    assert len({train.fingerprint, *(other.fingerprint for other in others)}) == 3


def test_its_tokenizer_reads_and_writes_every_character(path: str) -> None:
    data = CharacterDataset(path=path, seq_len=8)
    tokenizer = Tokenizer.from_file(str(data.tokenizer_path))
    assert tokenizer.encode(TEXT).ids == data.ids.tolist()
    assert tokenizer.decode(data.ids.tolist()) == TEXT


def test_a_worker_gets_the_same_windows(path: str) -> None:
    data = CharacterDataset(path=path, seq_len=8, stride=1)
    again = pickle.loads(pickle.dumps(data))
    assert np.array_equal(again.__getitems__([0, 5]), data.__getitems__([0, 5]))


def test_what_is_refused(path: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        CharacterDataset(path=str(tmp_path / "no.txt"), seq_len=0, train_fraction=1.0, stride=0)
    assert [problem.partition(" must ")[0] for problem in caught.value.problems] == [
        "seq_len (0)", "train_fraction (1.0)", "stride (0)", f"path ('{tmp_path / 'no.txt'}')",
    ]  # fmt: skip
    digest = hashlib.sha256(TEXT.encode()).hexdigest()
    CharacterDataset(path=path, seq_len=8, sha256=digest.upper())
    with pytest.raises(DataError, match=f"SHA-256 of .*text.txt \\({digest}\\) must be abc; it is another text"):
        CharacterDataset(path=path, seq_len=8, sha256="abc")
    with pytest.raises(DataError, match=r"characters in .*text.txt:validation \(100\) must be at least seq_len \+ 1"):
        CharacterDataset(path=path, seq_len=100, split="validation")
    with pytest.raises(DataError, match=r"\(17 different ones\) must be at most the model's vocab_size \(9\)"):
        CharacterDataset(path=path, seq_len=8).check_vocabulary(9)


@pytest.mark.skipif(not SHAKESPEARE.is_file(), reason="needs tinyshakespeare")
def test_the_numbers_of_nanogpt() -> None:
    parts = {
        split: CharacterDataset(path=str(SHAKESPEARE), seq_len=64, split=split)  # type: ignore[arg-type]
        for split in ("train", "validation")
    }
    assert (len(parts["train"].ids), len(parts["validation"].ids)) == (1_003_854, 111_540)
    assert len(parts["train"].vocabulary) == 65
