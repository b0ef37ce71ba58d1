from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modlib.data.tokenizer import Tokenizer, tokenizer_fingerprint, train_byte_level_bpe
from modlib.runtime.errors import DataError
from tests.data.conftest import SENTENCES


@given(st.text(max_size=200))
@settings(deadline=None, max_examples=60)
def test_any_text_survives(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert all(0 <= token < tokenizer.vocab_size for token in ids)


@given(st.lists(st.text(max_size=50), max_size=10))
@settings(deadline=None, max_examples=40)
def test_batch_equals_one_by_one(tokenizer: Tokenizer, texts: list[str]) -> None:
    ids, lengths = tokenizer.encode_batch(texts)
    assert [part.tolist() for part in np.split(ids, np.cumsum(lengths))[:-1]] == [
        tokenizer.encode(text) for text in texts
    ]


def test_special_token_in_a_text_is_text_unless_asked_for(tokenizer: Tokenizer) -> None:
    text = "fox<|endoftext|>dog"
    end = tokenizer.end_of_document_id()
    assert end == 0
    assert end not in tokenizer.encode(text)
    assert end not in tokenizer.encode_batch([text])[0]
    assert tokenizer.encode(text, special_tokens=True).count(end) == 1
    assert end not in tokenizer.encode(text)
    assert tokenizer.decode([end]) == "<|endoftext|>"
    assert tokenizer.decode([end], skip_special_tokens=True) == ""


def changed(tokenizer: Tokenizer, path: Path, **fields: object) -> Path:
    content = json.loads(tokenizer.path.read_text()) | fields
    path.write_text(json.dumps(content))
    return path


def test_fingerprint_is_of_the_meaning(tokenizer: Tokenizer, tmp_path: Path) -> None:
    limits = {
        "truncation": {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0},
        "padding": {
            "strategy": {"Fixed": 50},
            "direction": "Right",
            "pad_to_multiple_of": None,
            "pad_id": 0,
            "pad_type_id": 0,
            "pad_token": "<|endoftext|>",
        },
    }
    same = Tokenizer(changed(tokenizer, tmp_path / "same.json", **limits))
    assert same.fingerprint == tokenizer.fingerprint
    assert same.encode(SENTENCES[1]) == tokenizer.encode(SENTENCES[1])  # neither cut nor padded
    assert same.encode_batch(SENTENCES)[1].tolist() == tokenizer.encode_batch(SENTENCES)[1].tolist()
    assert (
        Tokenizer(changed(tokenizer, tmp_path / "other.json", pre_tokenizer=None)).fingerprint != tokenizer.fingerprint
    )
    reordered = dict(reversed(json.loads(tokenizer.path.read_text()).items()))
    assert tokenizer_fingerprint(json.dumps(reordered, indent=7)) == tokenizer.fingerprint


def test_vocab_size_counts_added_tokens(tokenizer: Tokenizer, tmp_path: Path) -> None:
    added = json.loads(tokenizer.path.read_text())["added_tokens"]
    late = added[0] | {"id": tokenizer.vocab_size, "content": "<|late|>"}
    later = Tokenizer(changed(tokenizer, tmp_path / "later.json", added_tokens=[*added, late]))
    assert later.vocab_size == tokenizer.vocab_size + 1
    assert later.token_id("<|late|>") == tokenizer.vocab_size
    assert later.token_id("<|nowhere|>") is None


def test_folder_with_a_tokenizer(tokenizer: Tokenizer) -> None:
    assert Tokenizer(tokenizer.path.parent).fingerprint == tokenizer.fingerprint


def test_bad_files_are_refused(tokenizer: Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"tokenizer .*tokenizer.json cannot be read: No such file or directory"):
        Tokenizer(tmp_path)
    for text in ("not json", "[1]", '{"model": 5}'):
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(DataError, match=r"bad.json must be a tokenizer.json of the tokenizers library; "):
            Tokenizer(tmp_path / "bad.json")
    with pytest.raises(DataError) as caught:
        tokenizer.end_of_document_id("<|end|>")
    assert str(caught.value) == (
        f"end-of-document token (<|end|>) must be a token of {tokenizer.path}; "
        "name one of its special tokens: <|endoftext|>"
    )


TRAIN = """
import sys
from pathlib import Path
from modlib.data.tokenizer import train_byte_level_bpe
from modlib.data import stdlib_corpus as c
root = c.library_root()
texts = [text for _, text in c.read_sources(root, c.list_sources(root)[:40]).documents]
print(train_byte_level_bpe(texts, Path(sys.argv[1]), vocab_size=800, end_of_document="<|endoftext|>").fingerprint)
"""


def test_training_gives_the_same_tokenizer_on_any_number_of_cores(tmp_path: Path) -> None:
    found = {
        subprocess.run(
            [sys.executable, "-c", TRAIN, str(tmp_path / f"{threads}.json")],
            env=os.environ | {"RAYON_NUM_THREADS": threads, "PYTHONHASHSEED": threads},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for threads in ("1", "3")
    }
    assert len(found) == 1


def test_trained_vocabulary(tmp_path: Path) -> None:
    trained = train_byte_level_bpe(["aaaa bbbb"] * 5, tmp_path / "t.json", vocab_size=260, end_of_document="<|end|>")
    assert trained.vocab_size <= 260
    assert trained.end_of_document_id("<|end|>") == 0
