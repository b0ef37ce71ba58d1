from __future__ import annotations

import inspect
import io
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modlib.data.text.tokenizer import TextTokenizer, Tokenizer
from modlib.data.tokenizers.huggingface_tokenizer import PretrainedHFTokenizer
from modlib.data.tokenizers.sentencepiece_tokenizer import PretrainedSPTokenizer
from modlib.runtime.errors import ConfigError, DataError
from tests.conftest import ROOT
from tests.data.conftest import SENTENCES

sentencepiece = pytest.importorskip("sentencepiece")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BPE model with byte fallback, no normalization, control pieces and a user-defined piece."""
    buffer = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES * 20), model_writer=buffer, vocab_size=400, model_type="bpe",
        byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False, hard_vocab_limit=False,
        control_symbols=["<pad>"], user_defined_symbols=["<|turn|>"], minloglevel=2, num_threads=1,
    )  # fmt: skip
    path = tmp_path_factory.mktemp("sentencepiece") / "small.model"
    path.write_bytes(buffer.getvalue())
    return path


# The space piece is "▁" itself, and the model replaces NUL: both are its own rules, not ours.
texts = st.text(st.characters(exclude_characters="▁\x00", exclude_categories=("Cs",)), max_size=80)


@given(texts)
@settings(max_examples=80)
def test_any_text_survives_by_its_bytes(model: Path, text: str) -> None:
    tokenizer = PretrainedSPTokenizer(model)
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert all(0 <= token < tokenizer.vocab_size for token in ids)


@given(st.lists(texts, max_size=8))
@settings(max_examples=30)
def test_batch_equals_one_by_one(model: Path, texts: list[str]) -> None:
    tokenizer = PretrainedSPTokenizer(model, add_bos=True, num_threads=2)
    ids, lengths = tokenizer.encode_batch(texts)
    assert ids.dtype == np.uint32
    assert [part.tolist() for part in np.split(ids, np.cumsum(lengths))[:-1]] == [
        tokenizer.encode(text) for text in texts
    ]


def test_ids_are_the_library_s_and_count_every_piece(model: Path) -> None:
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(model))
    ours = PretrainedSPTokenizer(model)
    assert ours.vocab_size == theirs.vocab_size()
    for text in SENTENCES:
        assert ours.encode(text) == theirs.encode(text)
        framed = PretrainedSPTokenizer(model, add_bos=True, add_eos=True)
        assert framed.encode(text) == theirs.encode(text, add_bos=True, add_eos=True)
    assert framed.settings != ours.settings == ""
    assert framed.fingerprint == ours.fingerprint


@pytest.mark.parametrize("kind", [PretrainedSPTokenizer, PretrainedHFTokenizer])
def test_both_kinds_have_the_one_interface(kind: type) -> None:
    for name, wanted in vars(TextTokenizer).items():
        if inspect.isfunction(wanted) and not name.startswith("_"):
            assert inspect.signature(getattr(kind, name)) == inspect.signature(wanted), name


def test_control_pieces(model: Path) -> None:
    tokenizer = PretrainedSPTokenizer(model)
    begin, end, pad, turn = (tokenizer.token_id(piece) for piece in ("<s>", "</s>", "<pad>", "<|turn|>"))
    assert tokenizer.end_of_document_id() == end
    assert [tokenizer.is_special(token) for token in (begin, end, pad, 0, turn, -1, 10**6)] == [True] * 4 + [False] * 3
    text = "fox</s>dog<|turn|>"
    plain = tokenizer.encode(text)
    assert end not in plain
    assert turn in plain
    assert tokenizer.decode(plain) == text
    read = tokenizer.encode(text, special_tokens=True)
    assert read.count(end) == 1
    assert tokenizer.encode_batch([text, text], special_tokens=True)[0].tolist() == read * 2
    assert tokenizer.decode([*tokenizer.encode("fox"), end]) == "fox</s>"
    assert tokenizer.decode([begin, *tokenizer.encode("fox"), end], skip_special_tokens=True) == "fox"


@given(st.lists(st.lists(st.sampled_from(["fox", " dog", "</s>", "<s>", "<pad>", "<|turn|>", "<", "s>"])), max_size=5))
@settings(max_examples=60)
def test_control_pieces_of_a_batch_are_those_of_each_text(model: Path, words: list[list[str]]) -> None:
    """Against a walk over the text that takes the control piece at each place, where there is one."""
    tokenizer = PretrainedSPTokenizer(model, add_eos=True, num_threads=2)
    texts = ["".join(each) for each in words]
    expected = []
    for text in texts:
        row, plain = [], ""
        while text:
            piece = next((piece for piece in ("</s>", "<pad>", "<s>") if text.startswith(piece)), None)
            if piece is None:
                plain, text = plain + text[0], text[1:]
            if plain and (piece is not None or not text):
                row += PretrainedSPTokenizer(model).encode(plain)
                plain = ""
            if piece is not None:
                row.append(tokenizer.token_id(piece))
                text = text[len(piece) :]
        expected.append([*row, tokenizer.end_of_document_id()])
    ids, lengths = tokenizer.encode_batch(texts, special_tokens=True)
    assert [part.tolist() for part in np.split(ids, np.cumsum(lengths))[:-1]] == expected
    assert [tokenizer.encode(text, special_tokens=True) for text in texts] == expected


COUNT_THREADS = """
import os, sys, threading, time
from modlib.data.tokenizers.sentencepiece_tokenizer import PretrainedSPTokenizer
from modlib.data.tokenizers.huggingface_tokenizer import PretrainedHFTokenizer
cores = len(os.sched_getaffinity(0))
threads = lambda: len(os.listdir("/proc/self/task"))
tokenizer = {"sp": PretrainedSPTokenizer, "hf": PretrainedHFTokenizer}[sys.argv[1]](sys.argv[2])
most, done = 0, threading.Event()
def watch():
    global most
    while not done.is_set():
        most = max(most, threads())
        time.sleep(0.0005)
watcher = threading.Thread(target=watch)
watcher.start()
before = threads()
tokenizer.encode_batch(["the quick brown fox " * 2000] * max(40, 4 * cores), special_tokens=sys.argv[3] == "special")
done.set()
watcher.join()
print(most - before, cores)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="counts threads in /proc")
@pytest.mark.parametrize("special", [pytest.param("plain", marks=pytest.mark.slow), "special"])
@pytest.mark.parametrize("kind", ["sp", "hf"])
def test_a_batch_is_encoded_on_all_cores(kind: str, special: str, model: Path, tokenizer: Tokenizer) -> None:
    path = {"sp": model, "hf": tokenizer.path}[kind]
    env = {name: value for name, value in os.environ.items() if name != "RAYON_NUM_THREADS"}
    words = [sys.executable, "-c", COUNT_THREADS, kind, str(path), special]
    done = subprocess.run(words, capture_output=True, text=True, check=True, env=env, cwd=ROOT)
    grown, cores = map(int, done.stdout.split())
    assert grown >= (cores if cores > 1 else 0)


def test_unknown_pieces_and_ids_are_refused(model: Path) -> None:
    tokenizer = PretrainedSPTokenizer(model)
    with pytest.raises(
        ConfigError, match=r"token \('<\|torn\|>'\) must be one token of .*; the closest are '<\|turn\|>'"
    ):
        tokenizer.token_id("<|torn|>")
    with pytest.raises(ConfigError) as caught:
        tokenizer.end_of_document_id("<|end|>")
    assert str(caught.value) == (
        f"end-of-document token (<|end|>) must be a piece of {model}; name one of its control pieces: <s>, </s>, <pad>"
    )
    with pytest.raises(DataError, match=rf"token id \({tokenizer.vocab_size}\) must be below vocab_size"):
        tokenizer.decode([tokenizer.vocab_size])


def test_pickled_tokenizer_gives_the_same_ids(model: Path) -> None:
    tokenizer = PretrainedSPTokenizer(model, add_eos=True)
    again = pickle.loads(pickle.dumps(tokenizer))
    assert again.encode(SENTENCES[2]) == tokenizer.encode(SENTENCES[2])
    assert (again.fingerprint, again.settings) == (tokenizer.fingerprint, tokenizer.settings)


def test_bad_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"tokenizer .*none.model cannot be read: No such file or directory"):
        PretrainedSPTokenizer(tmp_path / "none.model")
    for content in (b"", b"not a model"):
        (tmp_path / "bad.model").write_bytes(content)
        with pytest.raises(DataError, match=r"bad.model must be a SentencePiece model; name the .model file"):
            PretrainedSPTokenizer(tmp_path / "bad.model")
    with pytest.raises(ConfigError, match=r"num_threads \(0\) must be at least 1; use None for all cores"):
        PretrainedSPTokenizer(tmp_path / "bad.model", num_threads=0)


def test_missing_package_is_named_with_its_remedy(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(ConfigError) as caught:
        PretrainedSPTokenizer(model)
    assert str(caught.value) == (
        "PretrainedSPTokenizer needs the package sentencepiece; pip install 'modlib[sentencepiece]'"
    )


def test_model_without_control_pieces_of_its_own(shared_data: Path) -> None:
    """bos, eos and pad are user-defined there, so that the model itself knows no such ids."""
    path = shared_data / "tokenizers" / "sentencepiece_en_32k" / "en_32k_tokenizer.model"
    tokenizer = PretrainedSPTokenizer(path, add_bos=True, add_eos=True)
    assert tokenizer.vocab_size == 32768
    ids = tokenizer.encode("hello world")
    assert (ids[0], ids[-1]) == (tokenizer.token_id("<s>"), tokenizer.token_id("</s>"))
    assert PretrainedSPTokenizer(path).decode(tokenizer.encode("hello world")[1:-1]) == "hello world"
    assert tokenizer.end_of_document_id("<eod>") == 4
    with pytest.raises(ConfigError) as caught:
        tokenizer.end_of_document_id()
    assert str(caught.value) == (
        "end-of-document token (<|endoftext|> or <|end_of_text|> or </s> or <eos>) must be a special piece of "
        f"{path}, which has </s> as an ordinary one; name one of its control pieces: it has none, so name one that no "
        "text holds"
    )


@given(st.lists(st.one_of(texts, st.sampled_from(["<s>", "</s>", "<|turn|>", " "])), max_size=5).map("".join))
@settings(max_examples=60)
def test_every_character_has_its_pieces(model: Path, text: str) -> None:
    tokenizer = PretrainedSPTokenizer(model)
    ((ids, spans),) = tokenizer.encode_with_spans([text])
    assert ids.tolist() == tokenizer.encode(text, special_tokens=True)
    assert spans.shape == (len(ids), 2)
    assert {place for begin, end in spans.tolist() for place in range(begin, end)} == set(range(len(text)))
    assert (np.diff(spans[:, 0]) >= 0).all()


def test_places_of_control_pieces_and_of_bytes(model: Path) -> None:
    tokenizer = PretrainedSPTokenizer(model)
    text = "<s>the 猫<|turn|></s>"
    ((ids, spans),) = tokenizer.encode_with_spans([text])
    places = {tokenizer.decode([token]): text[begin:end] for token, (begin, end) in zip(ids.tolist(), spans.tolist())}
    assert places["<s>"] == "<s>"
    assert places["</s>"] == "</s>"
    assert places["<|turn|>"] == "<|turn|>"
    of_the_cat = [span for span in spans.tolist() if span[0] == text.index("猫")]
    assert len(of_the_cat) == 3  # its bytes: the last one has the character, the others stand before it
    assert of_the_cat[-1] == [7, 8]
    assert tokenizer.special_tokens == ["<s>", "</s>", "<pad>"]
    assert tokenizer.added_tokens == ["<s>", "</s>", "<pad>", "<|turn|>"]


def test_an_ordinary_piece_that_ends_documents_is_told(model: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("WARNING", "modlib")
    tokenizer = PretrainedSPTokenizer(model)
    tokenizer.end_of_document_id("<pad>")
    assert not caplog.messages
    tokenizer.end_of_document_id("<|turn|>")
    assert caplog.messages[0].startswith(f"end-of-document token ('<|turn|>') is an ordinary token of {model}, which")
