"""Plain text that spells a special token, with each kind of model that has it in its vocabulary."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import models, pre_tokenizers

from modlib.data.text.fast_bpe import FastBPE
from modlib.data.text.plain_text import PlainTextError
from modlib.data.text.tokenizer import Tokenizer
from modlib.data.tokenizers.huggingface_tokenizer import PretrainedHFTokenizer
from modlib.data.tokenizers.sentencepiece_tokenizer import PretrainedSPTokenizer
from tests.data import small_tokenizers as small
from tests.data.conftest import SENTENCES

Build = Callable[[Path], Path]


def pieces(tokenizer: Tokenizer, text: str) -> list[str]:
    """Texts of the tokens of a text, by both ways of encoding it."""
    ids, lengths = tokenizer.encode_batch(["the", text, "the"])
    assert tokenizer.encode(text) == np.split(ids, np.cumsum(lengths))[1].tolist()
    return [tokenizer.token_text(number) for number in tokenizer.encode(text)]


def library_ids(folder: Path, text: str) -> list[int]:
    """What the library itself gives when it is told not to read special tokens."""
    library = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    library.encode_special_tokens = True
    return library.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize(
    ("build", "text", "special", "expected"),
    [
        (small.t5, "a</s> the", 1, ["▁", "a", "<unk>", "/", "s", ">", "▁the"]),
        (small.t5, "a<unk>b", 2, ["▁", "a", "<unk>", "u", "n", "k", ">", "b"]),
        (small.t5, "<extra_id_0>", 3, ["▁", "<unk>", *"extra_id_0", ">"]),
        (small.word_piece, "a [SEP] b", 1, ["a", "[", "##S", "##E", "##P", "##]", "b"]),
        (small.whole_words, "a </s> b", 1, ["a", "</s", ">", "b"]),
        (small.whole_words, "a <unk> b", 2, ["a", *"<unk>", "b"]),
        (small.lower_case, "the <eod>", None, ["the", "[UNK]"]),
    ],
    ids=lambda value: getattr(value, "__name__", None) or str(value),
)
def test_special_tokens_in_plain_text_become_ordinary_pieces(
    build: Build, text: str, special: int | None, expected: list[str], tmp_path: Path
) -> None:
    folder = build(tmp_path)
    assert special is None or special in library_ids(folder, text), "the library does not mix them up here"
    tokenizer = PretrainedHFTokenizer(folder)
    assert pieces(tokenizer, text) == expected
    assert pieces(pickle.loads(pickle.dumps(tokenizer)), text) == expected
    if special is not None and build is not small.whole_words:
        assert special in tokenizer.encode(text, special_tokens=True)


def test_the_unknown_token_stays_for_what_is_unknown(tmp_path: Path) -> None:
    assert pieces(PretrainedHFTokenizer(small.t5(tmp_path / "t5")), "a{") == ["▁", "a", "<unk>"]
    assert pieces(PretrainedHFTokenizer(small.whole_words(tmp_path / "bpe")), "a é <unk>") == ["a", "<unk>", *"<unk>"]
    assert pieces(PretrainedHFTokenizer(small.word_level(tmp_path / "word")), "the [UNK] dog") == [
        "the", "[UNK]", "[UNK]",
    ]  # fmt: skip


def test_what_nothing_spells_is_refused(tmp_path: Path) -> None:
    folder = small.word_level(tmp_path / "word")
    tokenizer = PretrainedHFTokenizer(folder)
    refused = (
        f"text has the special token [EOS], whose id no text may become, and which no other tokens of "
        f"{folder / 'tokenizer.json'} spell; write it otherwise, or leave it out"
    )
    for encode in (tokenizer.encode, lambda text: tokenizer.encode_batch(["the fox", text])):
        with pytest.raises(PlainTextError) as caught:
            encode("the [EOS] fox")
        assert str(caught.value) == str(pickle.loads(pickle.dumps(caught.value))) == refused
    assert tokenizer.encode("the fox") == [2, 3]
    without = PretrainedHFTokenizer(small.t5(tmp_path / "dna", "acgt"))
    assert without.encode("gatt{") == [4, 8, 6, 9, 9, 2]
    with pytest.raises(PlainTextError, match=r"text has the special token </s>, whose id no text may become"):
        without.encode("ga</s>")


def test_text_that_the_library_cannot_encode_is_told(tmp_path: Path) -> None:
    tokenizer = PretrainedHFTokenizer(small.word_level(tmp_path, unk_token=None))
    assert tokenizer.encode("the fox") == [2, 3]
    with pytest.raises(PlainTextError, match=r"text cannot be encoded by .*tokenizer.json \(WordLevel error: Missing"):
        tokenizer.encode_batch(["the fox", "the dog"])
    with pytest.raises(PlainTextError, match=r"text has the special token \[EOS\]"):
        tokenizer.encode("the [EOS]")


def test_noncharacters_do_not_lead_to_a_special_id(tmp_path: Path) -> None:
    tokenizer = PretrainedHFTokenizer(small.t5(tmp_path))
    with pytest.raises(PlainTextError, match=r"text has the special token </s>"):
        tokenizer.encode("a\U0010fffe\U0010ffff1")


def test_decode_shows_a_special_token_as_its_file_has_it(tmp_path: Path) -> None:
    tokenizer = PretrainedHFTokenizer(small.lower_case(tmp_path))
    end = tokenizer.token_id("<EOD>")
    assert tokenizer.decode([1, end]) == pickle.loads(pickle.dumps(tokenizer)).decode([1, end]) == "the <EOD>"
    assert tokenizer.decode([1, end], skip_special_tokens=True) == "the"
    assert end in tokenizer.encode("the <eod>", special_tokens=True)


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[PretrainedSPTokenizer, PretrainedHFTokenizer]:
    """A SentencePiece Unigram model, and its pieces in a tokenizer.json as transformers converts them."""
    folder = tmp_path_factory.mktemp("unigram")
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=iter([*SENTENCES, "<s>/</s> <unk> <pad>"] * 20), model_prefix=str(folder / "sp"),
        vocab_size=100, model_type="unigram", normalization_rule_name="identity", pad_id=3,
        hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    ours = PretrainedSPTokenizer(folder / "sp.model")
    model = sentencepiece.SentencePieceProcessor(model_file=str(folder / "sp.model"))
    vocab = [(model.id_to_piece(n), model.get_score(n)) for n in range(len(model))]
    library = tokenizers.Tokenizer(models.Unigram(vocab, unk_id=model.unk_id()))
    library.normalizer = tokenizers.normalizers.Replace(tokenizers.Regex(" {2,}"), " ")
    library.pre_tokenizer = pre_tokenizers.Metaspace()
    library.add_special_tokens(["<unk>", "<s>", "</s>", "<pad>"])
    return ours, PretrainedHFTokenizer(small.saved(library, folder))


@given(st.lists(st.sampled_from(["</s>", "<s>", "<unk>", "<pad>", " the", "fox", "<", "/s>", "q", "{"]), max_size=8))
@settings(max_examples=60)
def test_ids_are_those_of_sentencepiece(
    both: tuple[PretrainedSPTokenizer, PretrainedHFTokenizer], parts: list[str]
) -> None:
    """Control pieces are in none of its lattices."""
    text = "a" + "".join(parts)
    assert both[1].encode(text) == both[0].encode(text)


def test_a_control_piece_that_sentencepiece_read_is_refused(
    both: tuple[PretrainedSPTokenizer, PretrainedHFTokenizer], monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = both[0]
    end = tokenizer.end_of_document_id()
    monkeypatch.setattr(tokenizer, "_control", {*tokenizer._control, tokenizer.encode("fox")[-1]})
    with pytest.raises(PlainTextError, match=r"text has a control piece of .*sp.model, whose id no text may become"):
        tokenizer.encode_batch(["the", "fox"])
    assert end in tokenizer.encode("fox</s>", special_tokens=True)


def test_the_fast_engine_is_checked_as_well(tmp_path: Path) -> None:
    """A special token that is one word to the split pattern, and that `ignore_merges` looks up."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    library = small.bytes_of(["<|endoftext|>"])
    vocab = {token: number for number, token in enumerate(["<|endoftext|>", *alphabet, "END"])}
    library.model = models.BPE(vocab, [], ignore_merges=True)
    library.add_special_tokens(["END"])
    folder = small.saved(library, tmp_path)
    tokenizer = PretrainedHFTokenizer(folder)
    assert 257 in library_ids(folder, "the\nEND")
    fast = FastBPE(tokenizer)
    assert 257 in fast._encode("END")
    ids, lengths = fast.encode_batch(["fox", "END", "the\nEND", ""])
    assert np.array_equal(ids, tokenizer.encode_batch(["fox", "END", "the\nEND", ""])[0])
    assert lengths.tolist() == [3, 3, 7, 0]
    assert tokenizer.decode(ids) == "foxENDthe\nEND"
    assert 257 not in ids


@pytest.mark.parametrize("number", [1, 3, 4, 9])
def test_special_ids_are_found_however_they_are_spread(number: int, tmp_path: Path) -> None:
    """Few runs of ids are compared with, many are looked up."""
    special = [f"[{one}]" for one in range(number)]
    tokens = ["[UNK]", *(text for one in special for text in (one, one.lower() + "x"))]
    library = tokenizers.Tokenizer(models.WordLevel({one: n for n, one in enumerate(tokens)}, unk_token="[UNK]"))
    library.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    library.add_special_tokens(special)
    plain = PretrainedHFTokenizer(small.saved(library, tmp_path)).plain_text
    for one in range(len(tokens)):
        assert plain.any_watched(np.array([0, one], np.uint32)) == (one % 2 == 1), one
    assert not plain.any_watched(np.zeros(0, np.uint32))


BUILDS = [small.gemma, small.roberta, small.deepseek, small.t5, small.word_level, small.word_piece, small.whole_words,
          small.lower_case]  # fmt: skip


@pytest.fixture(scope="module")
def families(tmp_path_factory: pytest.TempPathFactory) -> list[PretrainedHFTokenizer]:
    return [PretrainedHFTokenizer(build(tmp_path_factory.mktemp(build.__name__))) for build in BUILDS]


PARTS = ["</s>", "<s>", "<unk>", "[UNK]", "[EOS]", "[SEP]", "<EOD>", "<eod>", "<｜end▁of▁sentence｜>", "<pad>", "the",
         "fox", "x", " ", "<", "é", "\U0010fffe"]  # fmt: skip


@given(st.lists(st.lists(st.sampled_from(PARTS), max_size=5).map("".join), max_size=4))
@settings(max_examples=60)
def test_no_special_id_comes_out_of_any_text(families: list[PretrainedHFTokenizer], texts: list[str]) -> None:
    for tokenizer in families:
        unknown = {tokenizer._tokenizer.token_to_id(one) for one in ("[UNK]", "<unk>")}
        try:
            ids, lengths = tokenizer.encode_batch(texts)
        except PlainTextError:
            assert any("[EOS]" in text for text in texts), tokenizer.path
            continue
        assert not [one for one in set(ids.tolist()) - unknown if tokenizer.is_special(one)]
        assert ids.tolist() == [one for text in texts for one in tokenizer.encode(text)]
        assert len(lengths) == len(texts)
