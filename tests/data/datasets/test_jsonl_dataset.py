from __future__ import annotations

import functools
import json
import logging
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modlib.data.batches.collate import LMCollator
from modlib.data.batches.layout import BatchLayout
from modlib.data.batches.loader import DataLoader
from modlib.data.batches.sampler import ShuffledSampler
from modlib.data.datasets.jsonl_dataset import JSONLDataset
from modlib.data.packed.file import PackedFile
from modlib.data.text.tokenizer import Tokenizer
from modlib.data.tokenizers.huggingface_tokenizer import PretrainedHFTokenizer
from modlib.runtime.errors import ConfigError, DataError
from tests.changing_files import overwrite_in_place

Make = Callable[..., JSONLDataset]


@pytest.fixture
def make(tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """make(texts, seq_len=4, **settings): a dataset of these texts; "#" is one token each."""
    monkeypatch.setenv("MODLIB_CACHE", str(tmp_path / "cache"))

    def make(texts: list[str], seq_len: int = 4, **settings: Any) -> JSONLDataset:
        path = tmp_path / "data.jsonl"
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        settings = {"tokenizer": functools.partial(PretrainedHFTokenizer, tokenizer.path)} | settings
        return JSONLDataset(jsonl_path=str(path), seq_len=seq_len, **settings)

    return make


H = "#"


def rows(dataset: JSONLDataset) -> list[list[int | None]]:
    """Tokens of every sample; None is padding."""
    windows = dataset.__getitems__(range(len(dataset)))
    assert windows.trained.tolist() == windows.present.tolist()
    return [
        [int(token) if there else None for token, there in zip(ids, present, strict=True)]
        for ids, present in zip(windows.ids, windows.present, strict=True)
    ]


def test_documents_are_padded_or_cut(make: Make, tokenizer: Tokenizer) -> None:
    h, a = tokenizer.token_id("#"), tokenizer.token_id("!")
    dataset = make(["##", "", "!####", "!!!!!!!!", "####"])
    assert rows(dataset) == [
        [h, h, 0, None, None],
        [a, h, h, h, h],
        [h, 0, None, None, None],
        [a] * 5,
        [a, a, a, a, 0],
        [h, h, h, h, 0],
    ]
    assert len(dataset) == 6
    assert dataset.num_tokens == 2 + 5 + 8 + 4
    assert (dataset.num_documents, dataset.num_empty, dataset.num_truncated_tokens) == (5, 1, 0)
    assert dataset.bytes_per_token == 19 / (19 + 5)
    assert dataset[-1].ids.tolist() == dataset[5].ids.tolist() == [h, h, h, h, 0]


def test_long_documents_are_truncated_or_refused_when_asked(
    make: Make, tokenizer: Tokenizer, caplog: pytest.LogCaptureFixture
) -> None:
    h = tokenizer.token_id("#")
    with caplog.at_level(logging.WARNING, "modlib"):
        dataset = make(["#######", "##", ""], long_documents="truncate")
    assert rows(dataset) == [[h] * 5, [h, h, 0, None, None]]
    assert dataset.num_truncated_tokens == 3
    assert dataset.num_tokens == 4 + 2
    assert caplog.messages == [
        f"{dataset.name}: left out are 3 tokens beyond seq_len (long_documents = 'truncate'), "
        "1 documents without a token"
    ]
    with pytest.raises(DataError) as caught:
        make(["####", "#####"], long_documents="refuse")
    assert str(caught.value) == (
        f"tokens of document 1 of {dataset.name} (6) must be at most seq_len + 1 (5); set long_documents = 'cut' or "
        "'truncate', or a longer SEQ_LEN"
    )


@given(st.lists(st.text(st.characters(exclude_categories=("Cs",)), max_size=30), min_size=1), st.integers(1, 12))
@settings(max_examples=50)
def test_every_token_but_the_first_is_a_target_once(
    make: Make, tokenizer: Tokenizer, texts: list[str], seq_len: int
) -> None:
    if not any(texts):
        return
    dataset = make(texts, seq_len)
    _, targets = LMCollator()(dataset.__getitems__(range(len(dataset))))
    expected = [token for text in texts for token in [*tokenizer.encode(text), 0][1:]]
    assert targets[targets != -100].tolist() == expected
    assert dataset.num_tokens == len(expected)


def test_special_tokens_in_a_text_are_text_unless_asked_for(make: Make) -> None:
    texts = ["a<|endoftext|>b"]
    assert rows(make(texts, 40))[0].count(0) == 1
    read = make(texts, 40, special_tokens=True)
    assert rows(read)[0].count(0) == 2
    assert read.num_tokens == 3


def test_end_of_document_and_what_the_tokenizer_adds(make: Make, tokenizer: Tokenizer) -> None:
    h, end = tokenizer.token_id("#"), tokenizer.token_id("~")
    framed = functools.partial(PretrainedHFTokenizer, tokenizer.path, add_bos=True, bos_token="!")
    dataset = make(["##"], end_of_document="~", tokenizer=framed)
    assert rows(dataset) == [[tokenizer.token_id("!"), h, h, end, None]]
    assert dataset.fingerprint != make(["##"], end_of_document="~").fingerprint
    cutting = functools.partial(PretrainedHFTokenizer, tokenizer.path, truncation=True, max_length=3)
    with pytest.raises(ConfigError, match=r"must neither cut nor pad, which the dataset does by long_documents"):
        make(["##"], tokenizer=cutting)
    begun = functools.partial(PretrainedHFTokenizer, tokenizer.path, add_bos=True)  # with what ends documents, as GPT-2
    assert rows(make(["##"], tokenizer=begun)) == [[0, h, h, 0, None]]
    ending = functools.partial(PretrainedHFTokenizer, tokenizer.path, add_eos=True)
    with pytest.raises(
        ConfigError, match=r"\(add_eos\) must not add the end-of-document token, which the dataset does"
    ):
        make(["##"], tokenizer=ending)


def test_vocabulary_is_checked_before_training(make: Make, tokenizer: Tokenizer) -> None:
    dataset = make(["#~", "!"])
    largest = tokenizer.token_id("~")
    dataset.check_vocabulary(largest + 1)
    with pytest.raises(DataError) as caught:
        dataset.check_vocabulary(largest)
    assert str(caught.value) == (
        f"largest token id in {dataset.name} ({largest}) must be below the model's vocab_size ({largest}); set "
        f"vocab_size to at least {tokenizer.vocab_size}, or use the model's tokenizer"
    )
    dataset.check_tokenizer(tokenizer.fingerprint)
    with pytest.raises(DataError, match=r"must be the tokenizer in use \(other\); set JSONLDataset.tokenizer"):
        dataset.check_tokenizer("other")
    assert dataset.tokenizer_path == tokenizer.path


def test_fingerprint_tells_contents_and_settings(make: Make) -> None:
    texts = ["##", "#####"]
    first = make(texts).fingerprint
    assert make(texts).fingerprint == first
    others = [make([*texts, "a"]), make(texts, 5), make(texts, special_tokens=True), make(texts, end_of_document="~")]
    others.append(make(texts, long_documents="truncate"))
    assert len({first, *(other.fingerprint for other in others)}) == 6


def test_a_change_with_the_time_stamp_put_back_is_refused_too(make: Make) -> None:
    dataset = make(["##", "###"])
    overwrite_in_place(Path(dataset.name), 10, b"!")
    with pytest.raises(DataError, match=r"data.jsonl \(\d+ bytes\) must stay as it was when it was opened"):
        dataset.check_unchanged()


def test_changes_during_the_run_are_refused(make: Make) -> None:
    dataset = make(["##", "###"])
    dataset.check_unchanged()
    path = Path(dataset.name)
    os.utime(path, ns=(1, 1))  # a new time stamp is no change
    dataset.check_unchanged()
    with open(path, "r+b") as file:
        file.seek(10)
        file.write(b"!")
    os.utime(path, ns=(2, 2))
    with pytest.raises(DataError, match=r"data.jsonl \(\d+ bytes\) must stay as it was when it was opened"):
        dataset.check_unchanged()
    make(["!###", "##"])
    with pytest.raises(DataError, match=r"document 0 of .* must be JSON: .*; the file was changed during the run"):
        dataset[0]
    path.write_text('{"text": "AA"}\n{"text": "BBB"}\n')
    dataset = make(["ab", "###"])
    path.write_text('{"text": "東"}\n{"text": "BBB"}\n')
    with pytest.raises(DataError, match=r"document 0 of .*data.jsonl .*; the file was changed during the run: restore"):
        dataset[0]


def test_nothing_to_train_on_is_refused(make: Make) -> None:
    for texts in ([], ["", ""]):
        with pytest.raises(DataError, match=rf"documents in .* \({len(texts)}\) must have a token at 'text'"):
            make(texts)
    with pytest.raises(ConfigError, match=r"seq_len \(0\) must be at least 1"):
        make(["a"], 0)
    with pytest.raises(IndexError, match="must be 0 to 0"):
        make(["a"]).__getitems__([1])
    with pytest.raises(IndexError, match=r"sample \(1\) must be below the 1 samples"):
        make(["a"])[1]


@pytest.mark.parametrize(
    ("num_workers", "start_method"),
    [(0, "fork"), (2, "fork"), pytest.param(1, "spawn", marks=pytest.mark.slow)],
)
def test_loader_workers_tokenize_too(make: Make, num_workers: int, start_method: Any) -> None:
    """Forked after the tokenizer used its threads, which must not be used again in a child."""
    dataset = make(["word " * number for number in range(1, 30)], 8)
    again = pickle.loads(pickle.dumps(dataset))
    assert again.fingerprint == dataset.fingerprint
    loader = DataLoader(
        dataset=dataset, sampler=ShuffledSampler(seed=0, num_samples=len(dataset)), collate=LMCollator(),
        layout=BatchLayout(4), num_workers=num_workers, start_method=start_method,
    )  # fmt: skip
    with loader:
        batches = loader.iterate()
        for step in range(3):
            (inputs, targets), *_ = next(batches)
            expected, expected_targets = LMCollator()(again.__getitems__(loader.indices(step)))
            assert np.array_equal(inputs, expected)
            assert np.array_equal(targets, expected_targets)


def test_embedded_corpus_as_jsonl(caplog: pytest.LogCaptureFixture) -> None:
    tokenizer = functools.partial(PretrainedHFTokenizer, "stdlib:validation")
    dataset = JSONLDataset(jsonl_path="stdlib:validation", tokenizer=tokenizer, seq_len=64)
    packed = PackedFile(dataset.file.path.with_suffix(".packed"))
    assert dataset.num_documents == packed.num_documents
    assert dataset.bytes_per_token == pytest.approx(packed.num_bytes_of_text / packed.num_tokens, rel=1e-9)
    assert dataset.num_tokens == packed.num_tokens - packed.num_documents
    assert dataset.tokenizer_fingerprint == packed.tokenizer_fingerprint
    assert dataset[0].ids.tolist() == packed.tokens[:65].tolist()
    good = dataset.file.path.read_bytes()
    dataset.file.path.write_bytes(good.replace(b"e", b"E", 1))
    again = JSONLDataset(jsonl_path="stdlib:validation", tokenizer=tokenizer, seq_len=64)
    assert again.fingerprint == dataset.fingerprint
    assert again.file.path.read_bytes() == good
    assert f"cached corpus is damaged and is made again: {again.file.path}" in caplog.text


def test_lorem_ipsum(shared_data: Path) -> None:
    tokenizer = functools.partial(PretrainedHFTokenizer, shared_data / "tokenizers" / "gpt2")
    path = shared_data / "modalities" / "lorem_ipsum.jsonl"
    dataset = JSONLDataset(jsonl_path=str(path), tokenizer=tokenizer, seq_len=64)
    texts = [json.loads(line)["text"] for line in path.read_text().splitlines()]
    assert dataset.num_tokens == sum(len(dataset.tokenizer.encode(text)) for text in texts)
