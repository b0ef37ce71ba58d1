from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from modlib.data.text import fast_bpe
from modlib.data.text.fast_bpe import (
    PATTERNS,
    FastBPE,
    NotEquivalentError,
    first_difference,
)
from modlib.data.text.tokenizer import Tokenizer
from tests.data.conftest import SENTENCES

TRAINING = [
    *SENTENCES * 3,
    "I'm you're we'll he'd they've it's IT'S I'LL 1234567 12 345 x=1; y = 22\r\n\r\n\tif  a:\n        return  b",
    "日本語のテキスト und größer, Ελληνικά, кириллица    \n\n\n   \u3000\xa0\u2028 ½ ² ٣٤ Ⅷ",
] * 2
# letters, numbers and spaces of all kinds, what case folding maps to ASCII, combining marks, bytes of every length
ANY = st.text(st.characters(exclude_categories=("Cs",)), max_size=60)
AWKWARD = st.text(
    st.sampled_from("ab'stTSſdKmreveLl 1²½٣一é\u0301\u200b\x1c\x85\xa0\u2028\u3000\t\r\n\v<|endoftext|>🙂\U0010ffff"),
    max_size=60,
)


def trained(pattern: str, path: Path, special: tuple[str, ...] = ("<|endoftext|>",)) -> Tokenizer:
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    split = tokenizers.pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated")
    byte_level = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.pre_tokenizer = tokenizers.pre_tokenizers.Sequence([split, byte_level])
    made.decoder = tokenizers.decoders.ByteLevel()
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=600, special_tokens=list(special), initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(TRAINING, trainer)
    path.write_text(made.to_str())
    return Tokenizer(path)


QUICK_WITH_ONE = pytest.mark.parametrize(
    "fast",
    [0, *(pytest.param(number, marks=pytest.mark.slow) for number in (1, 2))],
    ids=["gpt2", "llama3", "qwen2"],
    indirect=True,
)


@pytest.fixture(scope="module", params=range(len(PATTERNS)), ids=["gpt2", "llama3", "qwen2"])
def fast(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> FastBPE:
    pattern = list(PATTERNS)[request.param]
    return FastBPE(trained(pattern, tmp_path_factory.mktemp("fast") / "tokenizer.json"))


@given(texts=st.lists(ANY | AWKWARD, max_size=8))
@settings(max_examples=300)
def test_ids_are_the_tokenizers_own_for_any_text(fast: FastBPE, texts: list[str]) -> None:
    ids, lengths = fast.encode_batch(texts)
    expected = [fast.tokenizer.encode(text) for text in texts]
    assert lengths.tolist() == [len(row) for row in expected]
    assert ids.tolist() == [number for row in expected for number in row]
    assert ids.dtype == np.uint32


@pytest.mark.slow
@QUICK_WITH_ONE
def test_ids_of_every_character(fast: FastBPE) -> None:
    many_of_a_kind = (*range(0x3400, 0x9F00), *range(0xAC00, 0xE000))  # Chinese and Korean; surrogates
    codes = sorted({*range(0x20000), *range(0xE0000, 0xE0200)} - set(many_of_a_kind))
    texts = [
        "".join(f"a{chr(code)}1 {chr(code)}'{chr(code)}\n" for code in codes[n : n + 2000])
        for n in range(0, len(codes), 2000)
    ]
    assert first_difference(fast, texts) is None


@pytest.mark.slow
@QUICK_WITH_ONE
def test_long_runs(fast: FastBPE) -> None:
    texts = ["a" * 70_000, *(unit * 7_000 for unit in ("ab", " ", "\n", " \n", "'s"))]
    texts.append("x" + " " * 1_500_000 + "y")  # where the fast engine's regular expressions would give up
    assert first_difference(fast, texts) is None


def test_the_tokenizer_of_the_corpus_and_pickling(tokenizer: Tokenizer) -> None:
    fast = pickle.loads(pickle.dumps(FastBPE(tokenizer)))
    assert first_difference(fast, SENTENCES) is None
    assert fast.encode_batch([])[0].tolist() == []


def test_other_planes_hold_no_letter_number_or_space() -> None:
    left_out = "".join(map(chr, (*range(0x40000, 0xE0000), *range(0xF0000, 0x110000))))
    for expression in (r"\P{L}+", r"\P{N}+", r"\S+"):
        assert tokenizers.normalizers.Replace(tokenizers.Regex(expression), "").normalize_str(left_out) == ""


def edited(tokenizer: Tokenizer, path: Path, edit: Callable[[dict[str, Any]], object]) -> Tokenizer:
    content = json.loads(tokenizer.to_json())
    edit(content)
    path.write_text(json.dumps(content))
    return Tokenizer(path)


def add_unreachable(content: dict[str, Any], whole_words: bool) -> None:
    """A token that the merges never make: "qz" is two bytes that no merge joins."""
    content["model"]["vocab"]["qz"] = len(content["model"]["vocab"])
    content["model"]["ignore_merges"] = whole_words


def add_another_way(content: dict[str, Any]) -> None:
    """A second pair that makes a token, at the end of the list."""
    vocab, merges = content["model"]["vocab"], content["model"]["merges"]
    pairs = [(token[:cut], token[cut:]) for token in vocab for cut in range(1, len(token))]
    merges.append(next([a, b] for a, b in pairs if a in vocab and b in vocab and [a, b] not in merges and "<" not in a))


def test_tokens_that_no_merge_makes_are_never_made(tokenizer: Tokenizer, tmp_path: Path) -> None:
    other = edited(tokenizer, tmp_path / "t.json", lambda content: add_unreachable(content, False))
    assert first_difference(FastBPE(other), ["qz", "aqz qz", *SENTENCES]) is None


def test_whole_words_are_looked_up_first(tokenizer: Tokenizer, tmp_path: Path) -> None:
    def edit(content: dict[str, Any]) -> None:
        content["model"]["vocab"]["qzj"] = len(content["model"]["vocab"])
        content["model"]["ignore_merges"] = True

    other = edited(tokenizer, tmp_path / "t.json", edit)
    assert other.encode("qzj") == [other.token_id("qzj")]
    assert first_difference(FastBPE(other), ["qzj", "aqzj qzj", *SENTENCES]) is None


@pytest.fixture(scope="module")
def with_turns(fast: FastBPE, tmp_path_factory: pytest.TempPathFactory) -> FastBPE:
    """With special tokens of which one is the beginning of another, and one more that is empty of letters."""
    path = tmp_path_factory.mktemp("turns") / "tokenizer.json"
    library = tokenizers.Tokenizer.from_str(fast.tokenizer.to_json())
    library.add_special_tokens(["<|t", "<|t|>", "<|t|>é", " \n"])
    library.save(str(path))
    return FastBPE(Tokenizer(path), special_tokens=True)


TURNS = st.lists(ANY | AWKWARD | st.sampled_from(["<|t", "<|t|>", "<|t|>é", "é", " \n", "\n", "|>"]), max_size=8)


@pytest.mark.slow
@given(texts=st.lists(TURNS.map("".join), max_size=4))
@settings(max_examples=150)
def test_special_tokens_and_the_places_of_all_are_the_tokenizers_own(with_turns: FastBPE, texts: list[str]) -> None:
    expected = with_turns.tokenizer.encode_with_spans(texts)
    for (ids, spans), (its_ids, its_spans) in zip(with_turns.encode_with_spans(texts), expected, strict=True):
        assert ids.tolist() == its_ids.tolist()
        assert spans.tolist() == its_spans.tolist()


@pytest.mark.parametrize("flag", ["single_word", "lstrip", "rstrip"])
def test_special_tokens_that_are_not_read_everywhere_are_refused(
    tokenizer: Tokenizer, tmp_path: Path, flag: str
) -> None:
    found = edited(tokenizer, tmp_path / "t.json", lambda c: c["added_tokens"][0].update({flag: True}))
    FastBPE(found)
    with pytest.raises(NotEquivalentError, match=r"it reads '<\|endoftext\|>' only as a word, or spaces with it"):
        FastBPE(found, special_tokens=True)


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (lambda c: c.update(normalizer={"type": "NFC"}), r"it normalizes text first \(NFC\)"),
        (lambda c: c["pre_tokenizer"].update(add_prefix_space=True), r"it adds a space before the text"),
        (lambda c: c.update(pre_tokenizer={"type": "Whitespace"}), "its pre-tokenizer is Whitespace, not ByteLevel"),
        (lambda c: c["pre_tokenizer"].update(use_regex=False), "its pre-tokenizer is not one split and then ByteLevel"),
        (lambda c: c["model"].update(dropout=0.1), "its dropout is 0.1"),
        (lambda c: c["added_tokens"][0].update(special=False), "it reads added tokens out of the text"),
        (lambda c: add_unreachable(c, True), "its token 'qz' is not made by its merges"),
        (lambda c: add_another_way(c), "its list of merges makes a token in two places"),
    ],
)
def test_what_is_not_the_same_is_refused(
    tokenizer: Tokenizer, tmp_path: Path, edit: Callable[[dict[str, Any]], object], reason: str
) -> None:
    with pytest.raises(NotEquivalentError, match=reason):
        FastBPE(edited(tokenizer, tmp_path / "t.json", edit))


def test_an_unknown_split_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotEquivalentError, match="its split pattern is none of the known ones"):
        FastBPE(trained(r"\w+|\W+", tmp_path / "t.json"))


def test_a_difference_is_found(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    fast = FastBPE(tokenizer)
    fast.ids = fast.ids[::-1]
    assert first_difference(fast, ["the quick"]) == "the quick"
    assert fast_bpe.first_difference(FastBPE(tokenizer), ["the quick"]) is None
