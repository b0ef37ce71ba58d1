"""Which token ends documents: each small tokenizer has what misled its family."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import sentencepiece

from modlib.data.text.tokenizer import Tokenizer
from modlib.data.tokenizers.from_files import load_tokenizer
from modlib.data.tokenizers.huggingface_tokenizer import PretrainedHFTokenizer
from modlib.runtime.errors import ConfigError
from tests.data import small_tokenizers as small
from tests.data.conftest import SENTENCES

TAG, LEFT_OVER = 261, 260


def test_a_well_known_name_counts_where_it_is_special(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    gemma = load_tokenizer(small.gemma(tmp_path / "gemma"))
    assert (gemma.token_id("</s>"), gemma.is_special(TAG)) == (TAG, False)
    assert gemma.end_of_document_id() == 1
    roberta = load_tokenizer(small.roberta(tmp_path / "roberta"))
    assert (roberta.token_id("<|endoftext|>"), roberta.is_special(LEFT_OVER)) == (LEFT_OVER, False)
    assert roberta.end_of_document_id() == 2
    assert Tokenizer(tmp_path / "roberta").end_of_document_id() == 2
    assert not caplog.messages


def test_the_folder_is_asked_after_the_well_known_names(tmp_path: Path) -> None:
    assert load_tokenizer(small.deepseek(tmp_path / "a")).end_of_document_id() == 1
    assert load_tokenizer(small.deepseek(tmp_path / "b", chat_template=small.DEEPSEEK)).end_of_document_id() == 1
    ends_turns = small.gemma(tmp_path / "c", eos_token="<end_of_turn>", chat_template=small.CHATML)
    assert load_tokenizer(ends_turns).end_of_document_id() == 1


@pytest.mark.parametrize("place", ["tokenizer_config.json", "chat_template.jinja", "list"])
def test_an_eos_that_ends_turns_ends_no_documents(place: str, tmp_path: Path) -> None:
    several = [{"name": "default", "template": small.CHATML}]
    template = {"chat_template": several if place == "list" else small.CHATML} if "jinja" not in place else {}
    folder = small.deepseek(tmp_path, eos_token="<|im_end|>", **template)
    if not template:
        (folder / "chat_template.jinja").write_text(small.CHATML)
    with pytest.raises(ConfigError) as caught:
        load_tokenizer(folder).end_of_document_id()
    assert str(caught.value) == (
        f"end-of-document token (<|endoftext|> or <|end_of_text|> or </s> or <eos>) must be a special token of "
        f"{folder / 'tokenizer.json'}, and the folder's eos_token (<|im_end|>) ends the turns of its chat template, "
        "not documents; name one of its special tokens: "
        "<｜begin▁of▁sentence｜>, <｜end▁of▁sentence｜>, <｜▁pad▁｜>, <|im_end|>"
    )
    assert load_tokenizer(folder).end_of_document_id("<｜end▁of▁sentence｜>") == 1


def test_a_template_that_fails_or_reaches_out_is_taken_for_one_that_ends_turns(tmp_path: Path) -> None:
    for number, template in enumerate(["{{ raise_exception('no') }}", "{{ ''.__class__ }}", "{% if %}", "nothing"]):
        folder = small.deepseek(tmp_path / str(number), chat_template=template)
        with pytest.raises(ConfigError, match=r"ends the turns of its chat template"):
            load_tokenizer(folder).end_of_document_id()


def test_without_a_name_the_special_tokens_are_listed(tmp_path: Path) -> None:
    folder = small.deepseek(tmp_path)
    (folder / "tokenizer_config.json").unlink()
    with pytest.raises(ConfigError, match=r"must be a special token of .*tokenizer.json; name one of its special tok"):
        load_tokenizer(folder).end_of_document_id()


def test_a_copy_beside_packed_data_is_not_told_by_other_files_there(tmp_path: Path) -> None:
    folder = small.deepseek(tmp_path)
    copy = (folder / "tokenizer.json").rename(folder / "books.tokenizer.json")
    with pytest.raises(ConfigError, match=r"must be a special token"):
        load_tokenizer(copy).end_of_document_id()


def test_an_ordinary_end_is_told_whoever_chose_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    by_user = load_tokenizer(small.gemma(tmp_path / "gemma"))
    assert by_user.end_of_document_id("</s>") == TAG
    by_folder = load_tokenizer(small.deepseek(tmp_path / "deepseek", eos_token="a"))
    assert by_folder.end_of_document_id() == by_folder.token_id("a")
    assert [message.split(" is an ordinary token of ")[0] for message in caplog.messages] == [
        "end-of-document token ('</s>')",
        "end-of-document token ('a')",
    ]
    assert "documents will seem to end within; its special tokens are <pad>, <eos>" in caplog.messages[0]


def test_what_begins_and_ends_texts_is_chosen_likewise(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    bare = PretrainedHFTokenizer(small.gemma(tmp_path / "gemma"), add_bos=True, add_eos=True)
    assert (bare.encode("")[0], bare.encode("")[-1]) == (2, 1)
    named = PretrainedHFTokenizer(small.deepseek(tmp_path / "deepseek"), add_bos=True, add_eos=True)
    assert named.encode("") == [0, 1]
    assert not caplog.messages
    tags = PretrainedHFTokenizer(tmp_path / "gemma", add_bos=True, bos_token="<s>")
    assert tags.encode("") == [260]
    assert caplog.messages[0].startswith("bos_token ('<s>') is an ordinary token of ")
    assert "documents will seem to begin within" in caplog.messages[0]
    (tmp_path / "deepseek" / "tokenizer_config.json").write_text(json.dumps({}))
    with pytest.raises(ConfigError, match=r"bos_token \(<\|begin_of_text\|> or <s> or .* must be a special token of"):
        PretrainedHFTokenizer(tmp_path / "deepseek", add_bos=True)


def test_a_sentencepiece_model_without_an_end_of_its_own(tmp_path: Path) -> None:
    """Its `</s>` is user-defined, which text can hold; the folder names a control piece."""
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=iter(SENTENCES * 20), model_prefix=str(tmp_path / "sp"), vocab_size=60, eos_id=-1,
        user_defined_symbols=["</s>"], control_symbols=["<fin>"], hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    tokenizer = load_tokenizer(tmp_path / "sp.model")
    with pytest.raises(ConfigError) as caught:
        tokenizer.end_of_document_id()
    assert str(caught.value) == (
        "end-of-document token (<|endoftext|> or <|end_of_text|> or </s> or <eos>) must be a special piece of "
        f"{tmp_path / 'sp.model'}, which has </s> as an ordinary one; name one of its control pieces: <s>, <fin>"
    )
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "<fin>"}')
    assert tokenizer.end_of_document_id() == tokenizer.token_id("<fin>")
    copy = (tmp_path / "sp.model").rename(tmp_path / "books.tokenizer.model")
    with pytest.raises(ConfigError, match=r"must be a special piece"):
        load_tokenizer(copy).end_of_document_id()
