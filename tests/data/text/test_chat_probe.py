from __future__ import annotations

from collections.abc import Callable

import pytest

from modlib.data.text.chat import Chat
from modlib.data.text.chat_probe import ChatProbe, probe_chat
from modlib.data.text.chat_template import ChatTemplate
from modlib.data.text.fields import Field
from tests.compatibility.chat import tokenizer_of
from tests.compatibility.chat_templates import FAMILIES, MARKERS

Probed = Callable[[str], ChatProbe | None]


@pytest.fixture(scope="module")
def probed(tmp_path_factory: pytest.TempPathFactory) -> Probed:
    tokenizer = tokenizer_of(FAMILIES["ChatML"], tmp_path_factory.mktemp("probe"))

    def of_template(text: str) -> ChatProbe | None:
        template = ChatTemplate(text, {"bos_token": "<s>", "eos_token": "</s>"}, "t.jinja")
        return probe_chat(Chat(Field("messages"), template, MARKERS), tokenizer, tokenizer.token_id("<|endoftext|>"))

    return of_template


def test_a_conversation_is_shown_with_its_mask(probed: Probed) -> None:
    assert probed(FAMILIES["ChatML without a prompt"].plain) == ChatProbe(
        "<|im_start|>user\nIs 91 a prime?<|im_end|>\n<|im_start|>assistant\n⟦No: 7 times 13.<|im_end|>⟧\n"
        "<|im_start|>user\nAnd 97?<|im_end|>\n<|im_start|>assistant\n⟦Yes, it is.<|im_end|>⟧\n<|endoftext|>",
        None,
    )


def test_no_two_turns_and_no_conversation_at_all(probed: Probed) -> None:
    one = "{{ raise_exception('one turn') if messages | length > 2 }}" + FAMILIES["ChatML"].plain
    found = probed(one)
    assert found is not None
    assert found.shown.count("⟦") == 1
    asks_tools = "{{ raise_exception('no tools') if not tools }}{% generation %}x{% endgeneration %}"
    assert probed(asks_tools) is None
    assert (
        probed("{% for m in messages if m.weight %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}")
        is None
    )


def test_what_ends_an_answer_is_the_next_turn_s_marker(probed: Probed) -> None:
    found = probed(FAMILIES["GLM-4"].plain)
    assert found is not None
    assert found.shown.endswith(
        "No: 7 times 13.<|user|>⟧\nAnd 97?<|assistant|>⟦\n<think></think>\nYes, it is.<|endoftext|>⟧"
    )
    assert found.warning == (
        "chat template t.jinja has no end of an answer but what begins the next turn (<|user|>): that is trained with "
        "the answer, and the end-of-document token behind the last one; generation has to stop at both"
    )


def test_nothing_ends_an_answer(probed: Probed) -> None:
    for text in (FAMILIES["a text without markers"].plain, FAMILIES["a text without markers"].marked):
        found = probed(text)
        assert found is not None
        assert found.shown.endswith("ASSISTANT: ⟦Yes, it is.\n<|endoftext|>⟧")
        assert found.warning == (
            "chat template t.jinja writes no special token behind an answer: the model learns to stop only from the "
            "end-of-document token behind the last one; write {{ eos_token }} behind each answer"
        )


def test_blocks_that_leave_out_the_end_of_an_answer(probed: Probed) -> None:
    text = FAMILIES["ChatML"].text.replace("{{ '<|im_end|>' }}»", "»{{ '<|im_end|>' }}")
    found = probed(text.replace("«", "{% generation %}").replace("»", "{% endgeneration %}"))
    assert found is not None
    assert found.shown.endswith("⟦Yes, it is.⟧<|im_end|>\n<|endoftext|>")
    assert found.warning == (
        "generation blocks of chat template t.jinja leave out <|im_end|>, which follows an answer: the model would not "
        "learn to stop; put it before {% endgeneration %}"
    )
