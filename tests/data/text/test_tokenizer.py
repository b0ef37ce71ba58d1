from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from modlib.data.text.tokenizer import Tokenizer, train_byte_level_bpe
from modlib.data.text.tokenizer_fingerprint import tokenizer_fingerprint
from modlib.data.tokenizers.huggingface_tokenizer import PretrainedHFTokenizer
from modlib.runtime.errors import ConfigError, DataError
from tests.data.conftest import SENTENCES


@given(st.text(max_size=200))
@settings(max_examples=60)
def test_any_text_survives(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert all(0 <= token < tokenizer.vocab_size for token in ids)


@given(st.lists(st.text(max_size=50), max_size=10))
@settings(max_examples=40)
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
    assert later.is_special(later.token_id("<|late|>"))
    assert not later.is_special(later.token_id("a"))
    with pytest.raises(ConfigError) as caught:
        later.token_id("<|latte|>")
    assert str(caught.value) == (
        f"token ('<|latte|>') must be one token of {later.path}; the closest are '<|late|>', '<|endoftext|>'"
    )
    with pytest.raises(ConfigError, match="; there is none like it"):
        later.token_id("#############")


def test_folder_with_a_tokenizer(tokenizer: Tokenizer) -> None:
    assert Tokenizer(tokenizer.path.parent).fingerprint == tokenizer.fingerprint


def test_bad_files_are_refused(tokenizer: Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"tokenizer .*tokenizer.json cannot be read: No such file or directory"):
        Tokenizer(tmp_path)
    for text in ("not json", "[1]", '{"model": 5}'):
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(DataError, match=r"bad.json must be a tokenizer.json of the tokenizers library; "):
            Tokenizer(tmp_path / "bad.json")
    with pytest.raises(ConfigError) as caught:
        tokenizer.end_of_document_id("<|end|>")
    assert str(caught.value) == (
        f"end-of-document token (<|end|>) must be a token of {tokenizer.path}; "
        "name one of its special tokens: <|endoftext|>"
    )


TRAIN = """
import sys
from pathlib import Path
from modlib.data.text.tokenizer import train_byte_level_bpe
from modlib.data.corpora import stdlib_corpus as c
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


def test_special_tokens_of_a_batch(tokenizer: Tokenizer) -> None:
    ids, lengths = tokenizer.encode_batch(["a<|endoftext|>", "b"], special_tokens=True)
    assert ids.tolist() == [*tokenizer.encode("a"), 0, *tokenizer.encode("b")]
    assert lengths.tolist() == [2, 1]


def test_pickled_tokenizer_gives_the_same_ids(tokenizer: Tokenizer) -> None:
    text = f"{SENTENCES[2]}<|endoftext|>"
    for one in (tokenizer, PretrainedHFTokenizer(tokenizer.path, add_eos=True)):
        again = pickle.loads(pickle.dumps(one))
        assert again.encode(text) == one.encode(text)
        assert again.encode(text, special_tokens=True) == one.encode(text, special_tokens=True)
        assert (again.fingerprint, again.settings, again.path) == (one.fingerprint, one.settings, one.path)


def frame(tokenizer: Tokenizer, **settings: object) -> tuple[list[int], list[int]]:
    """Ids of one text of five tokens, and of a batch with a text of two before it: the second of them."""
    framed = PretrainedHFTokenizer(tokenizer.path, **settings)  # type: ignore[arg-type]
    one = framed.encode("#####")
    ids, lengths = framed.encode_batch(["##", "#####"])
    assert ids[lengths[0] :].tolist() == framed.encode("#####")
    return one, ids[: lengths[0]].tolist()


def test_what_is_added_cut_and_padded(tokenizer: Tokenizer) -> None:
    """The table of Modalities' tokenizers: truncation and padding do nothing that was not asked for."""
    h = tokenizer.token_id("#")
    assert frame(tokenizer) == ([h] * 5, [h] * 2)
    assert frame(tokenizer, add_bos=True, add_eos=True) == ([0, *[h] * 5, 0], [0, h, h, 0])
    assert frame(tokenizer, truncation=True, max_length=4) == ([h] * 4, [h] * 2)
    assert frame(tokenizer, truncation=True, max_length=4, add_eos=True) == ([h, h, h, 0], [h, h, 0])
    assert frame(tokenizer, padding="max_length", max_length=6) == ([*[h] * 5, 0], [h, h, 0, 0, 0, 0])
    assert frame(tokenizer, padding="max_length", max_length=3) == ([h] * 5, [h, h, 0])
    assert frame(tokenizer, padding=True) == ([h] * 5, [h, h, 0, 0, 0])
    marker = tokenizer.token_id("~")
    assert frame(tokenizer, padding=True, pad_token="~")[1] == [h, h, marker, marker, marker]


def test_wrong_lengths_are_refused(tokenizer: Tokenizer) -> None:
    for wrong, text in (
        ({"truncation": True}, r"max_length \(None\) must be given with truncation or padding = 'max_length'"),
        ({"max_length": 5}, r"max_length \(5\) must go with truncation = True or padding = 'max_length'; set one"),
        (
            {"truncation": True, "max_length": 1, "add_bos": True, "add_eos": True},
            r"max_length \(1\) must be at least 2, what add_bos and add_eos add; set it higher",
        ),
    ):
        with pytest.raises(ConfigError, match=text):
            PretrainedHFTokenizer(tokenizer.path, **wrong)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"bos_token \(<s>\) must be a token of .*; name one of its special tokens"):
        PretrainedHFTokenizer(tokenizer.path, add_bos=True, bos_token="<s>")


def test_length_and_tokens_that_the_folder_names(tokenizer: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(tokenizer.path.read_text())
    (tmp_path / "special_tokens_map.json").write_text('{"bos_token": {"content": "~"}, "eos_token": "!"}')
    (tmp_path / "tokenizer_config.json").write_text('{"model_max_length": 3, "pad_token": null}')
    h, begin, end = (tokenizer.token_id(token) for token in "#~!")
    framed = PretrainedHFTokenizer(tmp_path, add_bos=True, add_eos=True, truncation=True, padding="max_length")
    assert framed.encode("####") == [begin, h, end]
    assert framed.encode("") == [begin, end, end]
    assert framed.fingerprint == tokenizer.fingerprint
    (tmp_path / "tokenizer_config.json").write_text('{"model_max_length": 1000000000000000019884624838656}')
    with pytest.raises(ConfigError, match="the tokenizer's files name none"):
        PretrainedHFTokenizer(tmp_path, truncation=True)


@pytest.mark.parametrize("texts", [SENTENCES, ["", "#" * 3000]])
def test_ids_equal_transformers(tokenizer: Tokenizer, texts: list[str]) -> None:
    from transformers import PreTrainedTokenizerFast

    theirs = PreTrainedTokenizerFast(tokenizer_file=str(tokenizer.path))
    ours = PretrainedHFTokenizer(tokenizer.path)
    for text in texts:
        assert ours.encode(text) == theirs(text)["input_ids"]
        assert ours.decode(ours.encode(text)) == text
    assert ours.vocab_size == len(theirs)


def test_added_tokens_count_as_in_transformers(tokenizer: Tokenizer, tmp_path: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    theirs = PreTrainedTokenizerFast(tokenizer_file=str(tokenizer.path))
    theirs.add_tokens(["<|one|>", "<|two|>"])
    theirs.save_pretrained(tmp_path)
    ours = PretrainedHFTokenizer(tmp_path)
    assert ours.vocab_size == len(theirs) == theirs.vocab_size + 2


def test_folder_without_tokenizer_json_is_read_by_transformers(tmp_path: Path) -> None:
    letters = [*"abcdefgh", "Ġ", "ab", "abc", "<|endoftext|>"]
    (tmp_path / "vocab.json").write_text(json.dumps({letter: number for number, letter in enumerate(letters)}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b\nab c\n")
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "GPT2Tokenizer"}')
    ours = PretrainedHFTokenizer(tmp_path)
    assert ours.encode("abcd") == [letters.index("abc"), letters.index("d")]
    assert ours.path == tmp_path
    assert pickle.loads(pickle.dumps(ours)).encode("abcd") == ours.encode("abcd")


def test_code_in_a_folder_is_never_run(tmp_path: Path) -> None:
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Evil: pass\n")
    (tmp_path / "tokenizer_config.json").write_text('{"auto_map": {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}}')
    (tmp_path / "config.json").write_text('{"model_type": "evil", "auto_map": {"AutoConfig": "evil.Evil"}}')
    with pytest.raises(DataError, match=r"must have a tokenizer.json, or files that transformers reads; "):
        PretrainedHFTokenizer(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_name_of_a_hub_repository_is_not_downloaded() -> None:
    with pytest.raises(ConfigError, match=r"tokenizer openai-community/gpt2 cannot be read: No such file or directory"):
        PretrainedHFTokenizer("openai-community/gpt2")


def test_gpt2(shared_data: Path) -> None:
    gpt2 = PretrainedHFTokenizer(shared_data / "tokenizers" / "gpt2")
    assert gpt2.vocab_size == 50257
    assert gpt2.encode("Hello world") == [15496, 995]
    assert gpt2.end_of_document_id() == 50256
    assert gpt2.is_special(50256)
    framed = PretrainedHFTokenizer(shared_data / "tokenizers" / "gpt2", truncation=True)
    assert len(framed.encode("a b " * 2000)) == 1024


@pytest.fixture(scope="module")
def with_turns(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """Two special tokens more, and spaces left out of the places of tokens, as RoBERTa's file has it."""
    path = tmp_path_factory.mktemp("turns") / "tokenizer.json"
    library = tokenizers.Tokenizer.from_file(str(tokenizer.path))
    library.add_special_tokens(["<|turn|>", "<|end|>"])
    library.post_processor = tokenizers.processors.ByteLevel(trim_offsets=True)
    library.save(str(path))
    return Tokenizer(path)


@given(st.lists(st.lists(st.one_of(st.text(max_size=9), st.sampled_from(["<|turn|>", "<|end|>", " "]))), max_size=4))
@settings(max_examples=60)
def test_every_character_has_its_tokens(with_turns: Tokenizer, parts: list[list[str]]) -> None:
    texts = ["".join(some) for some in parts]
    for text, (ids, spans) in zip(texts, with_turns.encode_with_spans(texts), strict=True):
        assert ids.tolist() == with_turns.encode(text, special_tokens=True)
        assert spans.shape == (len(ids), 2)
        assert {place for begin, end in spans.tolist() for place in range(begin, end)} == set(range(len(text)))
        assert (np.diff(spans[:, 0]) >= 0).all()
        for token, (begin, end) in zip(ids.tolist(), spans.tolist(), strict=True):
            if with_turns.is_special(token):
                assert with_turns.decode([token]) == text[begin:end]


def test_special_tokens_are_listed(with_turns: Tokenizer, tokenizer: Tokenizer) -> None:
    assert tokenizer.special_tokens == ["<|endoftext|>"]
    assert with_turns.special_tokens == ["<|endoftext|>", "<|turn|>", "<|end|>"]


def test_an_ordinary_token_that_ends_documents_is_told(tokenizer: Tokenizer, caplog: pytest.LogCaptureFixture) -> None:
    """Text can hold it, so that documents seem to end there."""
    caplog.set_level("WARNING", "modlib")
    tokenizer.end_of_document_id()
    tokenizer.end_of_document_id("<|endoftext|>")
    assert not caplog.messages
    assert tokenizer.end_of_document_id("a") == tokenizer.token_id("a")
    assert caplog.messages == [
        f"end-of-document token ('a') is an ordinary token of {tokenizer.path}, which text can hold: documents will "
        "seem to end within; its special tokens are <|endoftext|>"
    ]
