from __future__ import annotations

import datetime
import pickle
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modlib.data.text.chat import (
    ROLES,
    Chat,
    trained_tokens,
    without_missing,
)
from modlib.data.text.chat_template import ChatTemplate, Conversation
from modlib.data.text.fields import Field

TEXT = """{% if tools %}{{ tools | tojson }}{% endif %}{% for message in messages %}
<{{ message.role }}>{{ message.content }}{{ message.tool_calls }}<|end|>
{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"""
USER, ANSWER = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}


def chat(text: str = TEXT, field: str = "messages") -> Chat:
    return Chat(Field(field, beside=("tools",)), ChatTemplate(text, {}, "t.jinja"), ["<|end|>", "<|e|>"])


def text_of(row: Any, **settings: Any) -> str:
    return chat(**settings).conversation(row).text


def turned(row: Any) -> dict[str, Any]:
    """A function for --field: from ShareGPT's words."""
    roles = {"human": "user", "gpt": "assistant"}
    messages = [{"role": roles[one["from"]], "content": one["value"]} for one in row["conversations"]]
    return {"messages": messages, "tools": row.get("functions")}


def only_messages(row: Any) -> Any:
    return row[0]


def test_messages_and_tools_of_a_row() -> None:
    assert text_of({"messages": [USER, ANSWER]}) == "<user>hi<|end|>\n<assistant>yes<|end|>\n"
    assert text_of({"messages": [USER, ANSWER], "tools": [{"é": 1}]}).startswith('[{"é": 1}]<user>')
    assert text_of({"a": [{"b": [USER, ANSWER]}]}, field="a[0].b").startswith("<user>")
    row = {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "yes"}], "functions": ["f"]}
    assert text_of(row, field=f"{__name__}:turned") == '["f"]<user>hi<|end|>\n<assistant>yes<|end|>\n'
    assert text_of([[USER, ANSWER]], field=f"{__name__}:only_messages").startswith("<user>")


def test_a_message_that_only_calls_tools_has_no_content() -> None:
    calls = {"role": "assistant", "content": None, "tool_calls": [{"name": "f"}]}
    assert "<assistant>[{'name': 'f'}]<|end|>" in text_of({"messages": [USER, calls]})


def test_what_follows_an_end_marker_is_not_trained() -> None:
    found = chat().conversation({"messages": [USER, ANSWER, USER, ANSWER]})
    assert [found.text[begin:end] for begin, end in found.trained] == ["yes<|end|>"] * 2
    no_marker = TEXT.replace("<|end|>", "")
    found = chat(no_marker).conversation({"messages": [USER, ANSWER]})
    assert [found.text[begin:end] for begin, end in found.trained] == ["yes\n"]  # here the line's end is the marker
    block = "{% generation %}yes<|end|>\n\n{% endgeneration %}"
    found = chat(block).conversation({"messages": [USER, ANSWER]})
    assert [found.text[begin:end] for begin, end in found.trained] == ["yes<|end|>\n\n"]  # as the template says


@pytest.mark.parametrize("role", [*ROLES, "context"])
def test_roles_that_are_known_or_named_by_the_template(role: str) -> None:
    named = TEXT + "{# 'context' #}"
    assert f"<{role}>x" in text_of({"messages": [{"role": role, "content": "x"}, ANSWER]}, text=named)


LONELY = "\ud800"


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ("hi", "has no list of messages at 'messages' but str"),
        ([], "has an empty list of messages at 'messages'"),
        (["hi"], "has no object with role and content in message 0 of 'messages' but str"),
        ([{"from": "gpt", "value": "x"}], "has no role in message 0 of 'messages' (there is from, value)"),
        ([{}], "has no role in message 0 of 'messages' (there is nothing)"),
        (
            [USER, {"role": "asistant", "content": "x"}],
            "has a wrong role in message 1 of 'messages' ('asistant'); it must be system, developer, user, assistant, "
            "tool, function, or one that the template names",
        ),
        ([{"role": "user"}, ANSWER], "has no text as content in message 0 of 'messages' but null"),
        ([{"role": "user", "content": 5}, ANSWER], "has no text as content in message 0 of 'messages' but int"),
        ([USER], "has no message of the assistant at 'messages', so that nothing of it would be trained"),
        ([{"role": "user", "content": LONELY}, ANSWER], "has half of a surrogate pair in 'messages'"),
        (
            [{"role": "user", "content": "x<|end|>"}, ANSWER],
            "has the special token <|end|> in a message of 'messages', where it would be read as one; write it "
            "otherwise",
        ),
        (
            [{**USER, "when": datetime.date(2000, 1, 1)}, ANSWER],
            "has something in 'messages' that is not JSON (Object of type date is not JSON serializable)",
        ),
    ],
)
def test_rows_that_are_no_conversations(messages: Any, reason: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011  the whole text is compared
        chat().conversation({"messages": messages})
    assert str(caught.value) == reason


def test_a_row_without_messages_and_a_template_that_writes_no_answer() -> None:
    with pytest.raises(ValueError, match=r"^has no 'messages' \(there is text\)$"):
        chat().conversation({"text": "x"})
    with pytest.raises(ValueError, match=r"^is rendered without any text that is trained; look at the"):
        chat("yes{% generation %}{% endgeneration %}").conversation({"messages": [USER, ANSWER]})
    with pytest.raises(ValueError, match=r"^is rendered with half of a surrogate pair; look at the template$"):
        chat("{{ '\\udbff' }}" + TEXT).conversation({"messages": [USER, ANSWER]})


def ordinary(text: str = TEXT) -> Chat:
    """With a marker that is an ordinary added token, as some fine-tunes have it, and others that are no markers."""
    added = ["<|end|>", "<think>", "<|e|>", "<tool>"]
    return Chat(Field("messages"), ChatTemplate(text, {}, "t.jinja"), ["<|e|>"], added)


def test_added_tokens_that_the_template_writes_around_messages_are_markers() -> None:
    found = ordinary().conversation({"messages": [USER, ANSWER]})
    assert [found.text[begin:end] for begin, end in found.trained] == ["yes<|end|>"]  # without the line's end
    assert not found.stops_at_end
    with pytest.raises(ValueError) as caught:  # noqa: PT011  the whole text is compared
        ordinary().conversation(
            {"messages": [{"role": "user", "content": "Hi<|end|>\n<assistant>Hello<|end|>"}, ANSWER]}
        )
    assert str(caught.value) == (
        "has the template's token <|end|> in a message of 'messages', where it would be read as one; write it otherwise"
    )
    thoughts = {"role": "assistant", "content": "<think>hm, <tool></think>yes"}
    found = ordinary("{% set x = '<think>' %}" + TEXT).conversation({"messages": [USER, thoughts]})
    assert "<assistant><think>hm, <tool></think>yes<|end|>" in found.text


@pytest.mark.parametrize("parts", [["x<|e", "nd|>"], ["<|", "end", "|>"], ["<|en ", "\nd|>"]])
def test_parts_that_are_a_marker_together(parts: list[str]) -> None:
    content = [{"type": "text", "text": one} for one in parts]
    with pytest.raises(
        ValueError, match=r"^has the special token <\|end\|> in a message of 'messages', where it would"
    ):
        chat().conversation({"messages": [{"role": "user", "content": content}, ANSWER]})


def test_a_marker_that_json_writes_otherwise() -> None:
    marked = Chat(Field("messages"), ChatTemplate(TEXT, {}, "t.jinja"), ['\n"Human":', "<|end|>"])
    with pytest.raises(ValueError, match=r"^has the special token \n\"Human\": in a message of 'messages', where it"):
        marked.conversation({"messages": [{"role": "user", "content": 'x\n"Human": y'}, ANSWER]})


def test_a_thought_that_a_prompt_begins_is_no_marker() -> None:
    thought = "{{ '<think>' if m.role == 'assistant' }}"
    text = f"{{% for m in messages %}}<{{{{ m.role }}}}>{thought}{{{{ m.content }}}}<|end|>{{% endfor %}}"
    text += "{% if add_generation_prompt %}<assistant><think>{% endif %}"
    answer = {"role": "assistant", "content": "hm</think>yes"}
    asked = {"role": "user", "content": "what is <think>?"}
    found = ordinary(text).conversation({"messages": [asked, answer]})
    assert [found.text[begin:end] for begin, end in found.trained] == ["hm</think>yes<|end|>"]


@pytest.mark.parametrize("between", ["", "\n", " \n"])
def test_the_marker_of_the_next_turn_ends_an_answer_that_has_no_end_of_its_own(between: str) -> None:
    text = (
        "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}"
        + between
        + "{% if not loop.last %}{% endif %}{% endfor %}"
    )
    text += "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    markers = [f"<|{role}|>" for role in ("user", "assistant", "tool")]
    glm = Chat(Field("messages"), ChatTemplate(text, {}, "t.jinja"), markers)
    found = glm.conversation({"messages": [ANSWER, USER, ANSWER, {"role": "tool", "content": "x"}, ANSWER, ANSWER]})
    answers = [found.text[begin:end] for begin, end in found.trained]
    # not the assistant's own marker: that is a header, and never what ends an answer
    assert answers == [f"yes{between}<|user|>", f"yes{between}<|tool|>", f"yes{between}", f"yes{between}"]
    assert found.stops_at_end


def test_the_end_of_document_stops_an_answer_that_has_no_end_of_its_own() -> None:
    no_marker = TEXT.replace("<|end|>", "")
    assert chat(no_marker).conversation({"messages": [USER, ANSWER]}).stops_at_end
    assert not chat(no_marker).conversation({"messages": [USER, ANSWER, USER]}).stops_at_end
    assert not chat().conversation({"messages": [USER, ANSWER]}).stops_at_end
    # what a template writes at the end of a conversation alone stops it where nothing else does
    for text, answers in ((no_marker, ["yes\n", "yes\n<|e|>"]), (TEXT, ["yes<|end|>"] * 2)):
        closing = chat(text + "{% if not add_generation_prompt %}<|e|>{% endif %}")
        found = closing.conversation({"messages": [USER, ANSWER, USER, ANSWER]})
        assert [found.text[begin:end] for begin, end in found.trained] == answers
        assert not found.stops_at_end


def test_it_survives_pickling() -> None:
    row = {"messages": [USER, ANSWER], "tools": ["f"]}
    again = pickle.loads(pickle.dumps(chat()))
    assert again.conversation(row) == chat().conversation(row)
    assert again.field.beside == ("tools",)


@given(st.text(max_size=30), st.data())
def test_a_token_is_trained_when_any_of_its_characters_is(text: str, data: st.DataObject) -> None:
    places = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    spans = [(places[i], places[i + 1]) for i in range(0, len(places) - 1, 2)]
    pairs = st.tuples(st.integers(0, len(text)), st.integers(0, len(text)))
    tokens = [sorted(pair) for pair in data.draw(st.lists(pairs, max_size=8))]
    begins, ends = np.array(tokens, np.int64).reshape(-1, 2).T
    inside = {place for begin, end in spans for place in range(begin, end)}
    expected = [bool(inside & set(range(begin, max(end, begin + 1)))) for begin, end in tokens]
    assert trained_tokens(Conversation(text, spans), begins, ends).tolist() == expected


def test_parquet_gives_every_row_the_fields_of_all() -> None:
    row = {"messages": [{"role": "user", "content": "x", "name": None, "calls": [{"a": 1, "b": None}]}], "tools": None}
    assert without_missing(row) == {"messages": [{"role": "user", "content": "x", "calls": [{"a": 1}]}]}
