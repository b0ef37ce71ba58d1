from __future__ import annotations

from typing import Any

import pytest

from modlib.data.text.chat import Chat
from modlib.data.text.chat_contents import Contents
from modlib.data.text.chat_template import ChatTemplate
from modlib.data.text.fields import Field

TEXTS = """{% for m in messages %}
<{{ m.role }}>{{ m.content }}<|end|>
{% endfor %}
{% if add_generation_prompt %}
<assistant>{% endif %}"""
STRINGS = TEXTS.replace("m.content", "m.content if m.content is string")  # writes nothing of a list
PARTS = TEXTS.replace(
    "{{ m.content }}", "{% for p in m.content %}{{ p.text if p.type == 'text' else '<image>' }}{% endfor %}"
)
BOTH = TEXTS.replace(
    "{{ m.content }}",
    "{% if m.content is string %}{{ m.content | trim }}{% else %}{% for p in m.content %}"
    "{{ p.text | trim if p.type == 'text' else '<image>' }}{% endfor %}{% endif %}",
)
QUESTION = {"role": "user", "content": "hi"}


def text(*texts: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": one} for one in texts]


def packed(template: str, *messages: Any) -> tuple[str, list[str]]:
    chat = Chat(Field("messages"), ChatTemplate(template, {}, "t.jinja"), ["<|end|>"])
    found = chat.conversation({"messages": list(messages)})
    return found.text, [found.text[begin:end] for begin, end in found.trained]


def test_which_contents_are_read() -> None:
    for template, found in (
        (TEXTS, Contents(False, frozenset())),
        (STRINGS, Contents(False, frozenset())),
        (PARTS, Contents(True, frozenset())),
        (BOTH, Contents(False, frozenset({"user", "assistant"}))),
    ):
        assert ChatTemplate(template, {}, "t.jinja").contents == found


@pytest.mark.parametrize("template", [TEXTS, STRINGS, PARTS, BOTH])
@pytest.mark.parametrize("blocks", [False, True])
def test_an_answer_in_parts_is_trained_whatever_a_template_reads(template: str, blocks: bool) -> None:
    """Not lost, as by a template that reads texts alone, and not written as Python would."""
    if blocks:
        said = template.partition("<{{ m.role }}>")[2].partition("<|end|>")[0]
        template = template.replace(
            f"{said}<|end|>",
            f"{{% if m.role == 'assistant' %}}{{% generation %}}{said}<|end|>{{% endgeneration %}}"
            f"{{% else %}}{said}<|end|>{{% endif %}}",
        )
    for content in ("Hello.", text("Hello."), text("Hel", "lo.")):
        whole, answers = packed(template, QUESTION, {"role": "assistant", "content": content})
        assert whole.replace("\n", "") == "<user>hi<|end|><assistant>Hello.<|end|>"
        assert answers == ["Hello.<|end|>"]


def test_parts_that_are_no_texts() -> None:
    image = {"role": "user", "content": [{"type": "image", "url": "x"}, *text("What is it?")]}
    answer = {"role": "assistant", "content": "A fox."}
    assert packed(BOTH, image, answer)[0].startswith("<user><image>What is it?<|end|>")
    for template in (TEXTS, STRINGS):
        with pytest.raises(ValueError) as caught:  # noqa: PT011  the whole text is compared
            packed(template, image, answer)
        assert str(caught.value) == (
            "has a part in message 0 that is no text (image), which the chat template does not read; use a template "
            "that does, or leave the part out"
        )
    with pytest.raises(ValueError, match=r"^has a part in message 1 that is no text \(str\), which the chat template"):
        packed(TEXTS, QUESTION, {"role": "assistant", "content": ["Hello."]})


def test_an_answer_that_a_template_does_not_write_is_not_lost_in_silence() -> None:
    short = TEXTS.replace("{{ m.content }}", "{{ m.content[:20] }}")
    with pytest.raises(ValueError) as caught:  # noqa: PT011  the whole text is compared
        packed(short, QUESTION, {"role": "assistant", "content": "It is a long answer, longer than others."})
    assert str(caught.value) == (
        "has an answer in message 1 of 'messages' ('It is a long answer, longer than others.') that the chat template "
        "does not write; use a template that does"
    )
    # the same texts are elsewhere: each answer is looked for where it should be
    only_first = "{% set x = namespace(n=0) %}" + TEXTS.replace(
        "<{{ m.role }}>{{ m.content }}", "{% set x.n = x.n + 1 %}<{{ m.role }}>{{ m.content if x.n < 5 }}"
    )
    with pytest.raises(ValueError, match=r"has an answer in message 5 of 'messages' \('hi'\) that the chat template"):
        packed(only_first, *[QUESTION, {"role": "assistant", "content": "hi"}] * 3)


def test_thoughts_may_be_left_out_but_not_what_follows_them() -> None:
    kept = TEXTS.replace("{{ m.content }}", "{{ m.content.split('</think>')[-1] | trim }}")
    thought = {"role": "assistant", "content": "<think>hm</think>\n\nYes."}
    assert packed(kept, QUESTION, thought)[1] == ["Yes.<|end|>"]
    with pytest.raises(ValueError, match=r"\('<think>hm</think>'\) that the chat template does not write; use a"):
        packed(kept, QUESTION, {"role": "assistant", "content": "<think>hm</think>"})
    calls = {"role": "assistant", "content": "<think>hm</think>", "tool_calls": [{"name": "f"}]}
    assert packed(kept, QUESTION, calls)[1] == ["<|end|>"]
