from __future__ import annotations

import re
from pathlib import Path

import pytest

from modlib.data.text.chat import Chat
from modlib.data.text.chat_template import ChatTemplate
from modlib.data.text.chat_turns import Turns
from modlib.data.text.fields import Field
from modlib.data.text.template_sandbox import BEGIN, END
from modlib.runtime.errors import ConfigError
from tests.compatibility.chat import CONVERSATIONS, Messages, row, turns
from tests.compatibility.chat_templates import EQUAL, FAMILIES, MARKERS

REMEDY = ": mark what is trained with {% generation %} and {% endgeneration %}, as docs/data.md shows (What is trained)"
REFUSED = {
    "DeepSeek R1": "without, any: chat template t.jinja must show what the assistant says in a conversation; it "
    "announces an answer with '<|assistant|><think>\\n', but does not write that before it ('<s><|user|>Is 91 a "
    f"prime?<|assistant|>'){REMEDY}",
    "Qwen3 Thinking": "without, two: chat template t.jinja must show what the assistant says in a conversation; it "
    "writes an earlier answer otherwise than the last one, not behind '<|im_start|>assistant\\n<think>\\n', which "
    f"announces an answer{REMEDY}, or end each conversation with its first answer",
}


@pytest.mark.parametrize("family", FAMILIES)
def test_text_ids_and_mask_of_a_family_are_those_of_transformers(family: str, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    found = row(family, tmp_path)
    assert found.checked.startswith("with blocks: text, " if family in REFUSED else "text, ids and mask of 12"), found
    assert (found.result == EQUAL) == (family not in REFUSED)
    assert found.checked.endswith(REFUSED.get(family, ""))


def test_the_docs_template_with_blocks_is_chatml() -> None:
    page = (Path(__file__).parents[3] / "docs" / "data.md").read_text()
    (text,) = (one for one in re.findall(r"```jinja\n(.*?)```", page, re.DOTALL) if "generation %}" in one)
    own, chatml = template(text), template(FAMILIES["ChatML"].plain)
    assert own.has_generation_blocks
    for messages in CONVERSATIONS.values():
        assert own.render(messages, add_generation_prompt=True).translate(
            {ord(BEGIN): None, ord(END): None}
        ) == chatml.render(messages, add_generation_prompt=True)
        assert trained(text, messages) == trained(FAMILIES["ChatML"].plain, messages)


def template(text: str) -> ChatTemplate:
    return ChatTemplate(text, {"bos_token": "<s>", "eos_token": "</s>"}, "t.jinja")


def trained(text: str, messages: Messages) -> list[str]:
    found = Chat(Field("messages"), template(text), MARKERS).conversation({"messages": messages})
    return [found.text[begin:end] for begin, end in found.trained]


def test_what_is_written_around_an_answer() -> None:
    assert template(FAMILIES["Phi-3"].plain).turns == Turns("<|assistant|>\n", "", "<|end|>\n", "<|endoftext|>")
    assert template(FAMILIES["GLM-4"].plain).turns == Turns("<|assistant|>", "", "", "")
    assert template(FAMILIES["Mistral"].plain).turns == Turns("", "", "</s>", "")
    header = "<|im_start|>assistant\n"
    assert template(FAMILIES["ChatML without a prompt"].plain).turns == Turns("", header, "<|im_end|>\n", "")


def test_a_system_s_message_that_a_template_insists_on() -> None:
    text = "{{ raise_exception('no system') if messages[0].role != 'system' }}" + FAMILIES["ChatML"].plain
    system = {"role": "system", "content": "Be brief."}
    assert trained(text, [system, *turns("user", "Hi", "Yes.")]) == ["Yes.<|im_end|>"]
    assert trained(text, [system, *turns("assistant", "Welcome!", "Hi", "Yes.")]) == [
        "Welcome!<|im_end|>",
        "Yes.<|im_end|>",
    ]


def test_a_header_that_differs_from_turn_to_turn_is_not_trained_but_refused() -> None:
    text = "{% for m in messages %}{{ loop.index ~ ' ' ~ m.role ~ ': ' ~ m.content ~ eos_token }}{% endfor %}"
    assert trained(text, turns("user", "Hi", "Yes.")) == ["Yes.</s>"]
    with pytest.raises(ConfigError, match="it writes an earlier answer otherwise than the last one: mark what"):
        trained(text, turns("user", "Hi", "Yes.", "And?", "No."))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{{ raise_exception('not today') }}",
         "does not render a question and an answer, which makes the chat template fail (TemplateError: not today)"
         + REMEDY.replace(": ", ": correct it, or ")),
        ("{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}",
         "writes nothing of it: write message.content"),
        ("{% for m in messages %}{{ m.content }}{{ '<end>' if loop.last }}{% endfor %}",
         "ignores add_generation_prompt, and writes a question otherwise once an answer follows" + REMEDY),
    ],
)  # fmt: skip
def test_templates_of_which_nothing_can_be_told_are_refused_once(text: str, why: str) -> None:
    with pytest.raises(ConfigError) as caught:
        trained(text, turns("user", "Hi", "Yes."))
    start = "chat template t.jinja must show what the assistant says in a conversation; it "
    assert str(caught.value) == start + why


def test_a_question_that_is_written_otherwise_once_it_is_answered() -> None:
    last = "{% for m in messages %}{{ m.role ~ ': ' ~ m.content }}{{ '</s>' if loop.last }}{{ '\\n' }}{% endfor %}"
    last += "{{ 'assistant: ' if add_generation_prompt }}"
    assert trained(last, turns("user", "Hi", "Yes.")) == ["Yes.</s>"]
    with pytest.raises(ConfigError, match="it writes an earlier answer otherwise than the last one: mark what"):
        trained(last, turns("user", "Hi", "Yes.", "And?"))


def test_an_answer_that_is_only_in_an_unclear_place_is_the_row_s_fault() -> None:
    text = "{% for m in messages %}{{ m.role ~ ': ' ~ m.content ~ eos_token }}{% endfor %}"
    text = "{{ 'x' if messages | length == 3 }}" + text + "{% if add_generation_prompt %}assistant: {% endif %}"
    messages = turns("assistant", "assistant: ", "assistant: ", "assistant: ")
    assert trained(text, messages) == ["assistant: </s>"] * 2  # what stands before an answer is what counts
    other_end = text.replace("eos_token", "(eos_token if messages | length != 3 else '#')")
    assert trained(other_end, messages[1:]) == ["assistant: </s>"]
    with pytest.raises(ValueError) as caught:  # noqa: PT011  the whole text is compared
        trained(other_end, messages)
    assert (
        str(caught.value) == f"is rendered so that what is trained cannot be told; the chat template has to{REMEDY[1:]}"
    )


def test_tool_calls_of_a_template_whose_beginnings_are_not_the_whole_s() -> None:
    calls = [{"name": "f", "arguments": {"x": 1}}, {"name": "g", "arguments": {}}]
    messages = [*turns("user", "Hi"), {"role": "assistant", "content": "", "tool_calls": calls}]
    messages += [{"role": "tool", "content": "3"}, *turns("assistant", "It is 3.", "Thanks", "Yes.")]
    first, *rest = trained(FAMILIES["Qwen3"].plain, messages)
    assert first == (
        '\n<tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call>'
        '\n<tool_call>\n{"name": "g", "arguments": {}}\n</tool_call><|im_end|>'
    )
    assert rest == ["It is 3.<|im_end|>", "<think>\n\n</think>\n\nYes.<|im_end|>"]
