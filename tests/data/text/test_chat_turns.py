from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from modlib.data.text.chat import Chat
from modlib.data.text.chat_template import ChatTemplate
from modlib.data.text.chat_turns import Turns
from modlib.data.text.fields import Field
from modlib.data.text.template_sandbox import BEGIN, END
from modlib.runtime.errors import ConfigError
from tests.compatibility.chat import CONVERSATIONS, Messages, row, turns
from tests.compatibility.chat_templates import EQUAL, FAMILIES, MARKERS, Family

REMEDY = ": mark what is trained with {% generation %} and {% endgeneration %}, as docs/data.md shows (What is trained)"
START = "chat template t.jinja must show what the assistant says in a conversation; it "
REFUSED = {
    "DeepSeek R1": "announces an answer with '<|assistant|><think>\\n', but does not write that before it ('<s><|user|>"
    f"Is 91 a prime?<|assistant|>'){REMEDY}",
    "Qwen3 Thinking": "writes an earlier answer otherwise than the last one, not behind "
    "'<|im_start|>assistant\\n<think>\\n', which announces an answer"
    f"{REMEDY}, or end each conversation with its first answer",
}


@pytest.mark.parametrize("family", FAMILIES)
def test_text_ids_and_mask_of_a_family_are_those_of_transformers(family: str, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    found = row(family, tmp_path)
    assert found.checked.startswith("with blocks: text, " if family in REFUSED else "text, ids and mask of 12"), found
    assert (found.result == EQUAL) == (family not in REFUSED)


@pytest.mark.parametrize("family", REFUSED)
def test_what_is_refused_names_the_fault_and_the_remedy(family: str) -> None:
    with pytest.raises(ConfigError) as caught:
        trained(FAMILIES[family].plain, CONVERSATIONS["two"])
    assert str(caught.value) == START + REFUSED[family]


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


HEADS = [
    "'<|im_start|>' ~ role ~ '\\n'", "'<|' ~ role ~ '|>'", "'<|' ~ role ~ '|>\\n'", "role ~ ': '",
    "(role | upper) ~ ':'", "'\\n\\n' ~ role ~ ': '", "'### ' ~ role ~ '\\n\\n'",
]  # fmt: skip
SAID = ["Hi", "a b", " lead", "trail ", "\nnl\n", "", "user: x", "assistant: y", "USER:", "### assistant\n\n"]


@st.composite
def templates(draw: st.DrawFn) -> Family:
    """Templates as people write them: with « and » around the answer and its end."""
    head, end = draw(st.sampled_from(HEADS)), draw(st.sampled_from(["<|im_end|>", "</s>", "<|end|>"]))
    after, said = draw(st.sampled_from(["", "\\n", " "])), draw(st.sampled_from(["m.content", "m.content | trim"]))
    prompt = f"{{{{ {head.replace('role', repr('assistant'))} }}}}"
    where = draw(st.sampled_from(["end", "in the loop", "after a question", "nowhere"]))
    closing = draw(st.sampled_from(["", "<|endoftext|>", "</s>", "\\n"]))
    between = draw(st.sampled_from(["", "{{ '\\n' if not loop.first }}"]))
    start = draw(st.sampled_from(["", "<s>"]))
    if draw(st.booleans()):
        start += "{% if messages[0].role != 'system' %}<|system|>You help.{% endif %}"
    asked = draw(st.sampled_from(["", end]))
    loop = f"{between}{{{{ {head.replace('role', 'm.role')} }}}}{{% if m.role == 'assistant' %}}«{{{{ {said} }}}}{end}»"
    loop += f"{{% else %}}{{{{ {said} }}}}{asked}{{% endif %}}{{{{ '{after}' }}}}"
    if where in ("in the loop", "after a question"):
        only = " and m.role == 'user'" if where == "after a question" else ""
        loop += f"{{% if loop.last and add_generation_prompt{only} %}}{prompt}{{% endif %}}"
    text = f"{start}{{% for m in messages %}}{loop}{{% endfor %}}"
    if where == "end":
        text += f"{{% if add_generation_prompt %}}{between and '{{ newline }}'}{prompt}{{% endif %}}"
    text += f"{{{{ '{closing}' if not add_generation_prompt }}}}"
    return Family("{% set newline = '\\n' %}" + text)


TURNS = st.lists(
    st.tuples(st.sampled_from(["user", "assistant", "system"]), st.sampled_from(SAID)), min_size=1, max_size=6
)


@pytest.mark.slow
@given(templates(), st.lists(TURNS, min_size=1, max_size=4))
@settings(max_examples=80)
def test_of_any_template_nothing_else_is_trained_than_its_blocks_would_mark(
    family: Family, conversations: list[list[tuple[str, str]]]
) -> None:
    blocks = template(family.marked)
    chat = Chat(Field("messages"), template(family.plain), MARKERS)
    for some in conversations:
        messages = [{"role": role, "content": content} for role, content in [*some, ("assistant", "Yes.")]]
        right = blocks.conversation(messages)
        try:
            found = chat.conversation({"messages": messages})
        except ValueError as error:
            event(f"refused: {str(error)[:40]}")
            continue
        event("told")
        assert (found.text, list(found.trained)) == (right.text, list(right.trained))


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
    assert str(caught.value) == START + why


def test_a_question_that_is_written_otherwise_once_it_is_answered() -> None:
    last = "{% for m in messages %}{{ m.role ~ ': ' ~ m.content }}{{ '</s>' if loop.last }}{{ '\\n' }}{% endfor %}"
    last += "{{ 'assistant: ' if add_generation_prompt }}"
    assert trained(last, turns("user", "Hi", "Yes.")) == ["Yes.</s>"]
    with pytest.raises(ConfigError, match="it writes an earlier answer otherwise than the last one: mark what"):
        trained(last, turns("user", "Hi", "Yes.", "And?"))


def test_white_space_at_the_end_of_an_answer_that_is_stripped_is_not_that_of_the_next_turn() -> None:
    text = "{% for m in messages %}{{ '\\n\\n' ~ m.role ~ ': ' ~ (m.content | trim) }}{% endfor %}"
    text += "{{ '\\n\\nassistant: ' if add_generation_prompt }}"
    assert trained(text, turns("assistant", "Hi\n\n", "what?", "Yes.\n")) == ["Hi", "Yes."]
    kept = text.replace("(m.content | trim)", "m.content")
    assert trained(kept, turns("assistant", "Hi\n\n", "what?", "Yes.\n")) == ["Hi\n\n", "Yes.\n"]


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
