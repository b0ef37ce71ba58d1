"""Rows of chat data to conversations as text: what is checked of a row before a template sees it."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from modlib.data.text.chat_contents import Message, texts_of
from modlib.data.text.chat_template import ChatTemplate, Conversation
from modlib.data.text.fields import Field, kind_of
from modlib.data.text.tokenizer import Ids, Spans
from modlib.runtime.json_files import parse_json

ROLES = ("system", "developer", "user", "assistant", "tool", "function")
"""Roles that a message may have; others are allowed where the template names them."""
_END_OF_THOUGHTS = "</think>"


class Chat:
    """Takes the messages out of rows and renders them. Survives pickling.

    Args:
        field: Where a row has its messages; a function may also return {"messages": [...], "tools": [...]}. The row's
            own `tools`, if it has any, are given to the template.
        template: Writes them as text.
        special_tokens: Of the tokenizer: none may be in a message, where it would end a turn or begin one.
        added_tokens: All tokens that the tokenizer reads wherever they are in a text. Of those, the ones that the
            template writes around messages count as special ones do.

    Raises:
        ConfigError: The template does not show what of its text is the assistant's.
    """

    def __init__(
        self, field: Field, template: ChatTemplate, special_tokens: Sequence[str], added_tokens: Sequence[str] = ()
    ) -> None:
        self.field, self.template, self._special = field, template, frozenset(special_tokens)
        self._take_markers(special_tokens)
        around = template.around_messages()
        # A prompt may begin a thought, but the marks of thoughts are the messages' own.
        written = [one for one in added_tokens if one in around and "think" not in one.lower()]
        self._take_markers([*special_tokens, *written])

    def _take_markers(self, markers: Sequence[str]) -> None:
        self.markers = tuple(sorted(dict.fromkeys(markers), key=len, reverse=True))  # the longest is read
        self._marker = _any_of(self.markers)
        self._next_marker = re.compile(rf"\s*(?:{self._marker.pattern})")
        self._in_json = _any_of([json.dumps(one, ensure_ascii=False)[1:-1] for one in self.markers])

    def conversation(self, row: Any) -> Conversation:
        """Render one row.

        Raises:
            ConfigError: See `ChatTemplate.conversation`.
            ValueError: The row is no conversation to train on; the message completes "line 3 ...".
        """
        messages, tools = self._messages(row)
        name = self.field.name
        if not isinstance(messages, list):
            raise ValueError(f"has no list of messages at '{name}' but {kind_of(messages)}")
        if not messages:
            raise ValueError(f"has an empty list of messages at '{name}'")
        for number, message in enumerate(messages):
            self._check(message, number)
        if all(message["role"] != "assistant" for message in messages):
            raise ValueError(f"has no message of the assistant at '{name}', so that nothing of it would be trained")
        plain = parse_json(
            self._as_json(messages, tools), dict[str, Any], place=f"'{name}'"
        )  # whatever a function returned: nothing but JSON values
        for message in plain["messages"]:
            self._check_parts(message)
        # A key without a value is left out, as transformers does: "content" of a message that only calls tools.
        given = [{key: value for key, value in one.items() if value is not None} for one in plain["messages"]]
        return self.rendered(given, plain["tools"])

    def rendered(self, messages: Sequence[Message], tools: Any = None) -> Conversation:
        """Render messages of plain JSON values, and tell what is trained, with what ends each answer.

        Raises:
            ConfigError: See `ChatTemplate.conversation`.
            ValueError: What is trained cannot be told, or an answer is lost; the message completes "line 3 ...".
        """
        found = self.template.conversation(messages, tools)
        text, trained = found.text, found.trained
        if not self.template.has_generation_blocks:  # which say exactly what is meant
            trained = self._with_ends(found, messages)
        if not any(end > begin for begin, end in trained):
            raise ValueError("is rendered without any text that is trained; look at the template")
        self._check_answers(text, trained, messages)
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise ValueError("is rendered with half of a surrogate pair; look at the template") from error
        begin, end = trained[-1]
        last = messages[-1]["role"] == "assistant" and not text[end:].strip()
        return Conversation(text, trained, last and not text[begin:end].rstrip().endswith(self.markers))

    def marker_ending(self, text: str) -> str | None:
        """The special token, or other marker of the template, that a text ends with."""
        return next((one for one in self.markers if text.endswith(one)), None)

    def marker_beginning(self, text: str) -> str | None:
        """The one that a text begins with."""
        found = self._marker.match(text)
        return None if found is None else found[0]

    def _with_ends(self, found: Conversation, messages: Sequence[Message]) -> list[tuple[int, int]]:
        """Each answer with the marker that ends it, and without the white space that a template writes behind that.

        Where a turn has no end marker of its own, the model stops at the marker that begins the next one (GLM-4), or
        where the text ends.
        """
        text, trained = found.text, []
        numbers = [number for number, message in enumerate(messages) if message["role"] == "assistant"]
        for number, (begin, end) in zip(numbers, found.trained, strict=True):
            turn = text[begin:end].rstrip()
            if turn.endswith(self.markers):
                end = begin + len(turn)
            elif number + 1 == len(messages):
                closing = text[end:].rstrip()
                end += len(closing) if closing.endswith(self.markers) else 0
            elif messages[number + 1]["role"] != "assistant":
                following = self._next_marker.match(text, end)
                end = following.end() if following else end
            trained.append((begin, end))
        return trained

    def _check_answers(self, whole: str, trained: Sequence[tuple[int, int]], messages: Sequence[Message]) -> None:
        """Templates leave things out: thoughts of earlier answers are theirs to drop, an answer is not."""
        blocks = self.template.has_generation_blocks
        spans = iter(trained)
        place, limit = 0, len(whole)
        for number, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            if not blocks:
                place, limit = next(spans)
            for text in texts_of(message.get("content")):
                answer = text.rpartition(_END_OF_THOUGHTS)[2].strip()
                wanted = answer or ("" if message.get("tool_calls") else text.strip())
                place = whole.find(wanted, place, limit)
                if place < 0:
                    raise ValueError(
                        f"has an answer in message {number} of '{self.field.name}' ({wanted[:40]!r}) that the chat "
                        "template does not write; use a template that does"
                    )
                place += len(wanted)

    def _messages(self, row: Any) -> tuple[Any, Any]:
        value = self.field.value(row)
        if self.field.function is not None and isinstance(value, dict):
            return value.get("messages"), value.get("tools")
        return value, row.get("tools") if isinstance(row, dict) else None

    def _check(self, message: Any, number: int) -> None:
        place = f"message {number} of '{self.field.name}'"
        if not isinstance(message, dict):
            raise ValueError(f"has no object with role and content in {place} but {kind_of(message)}")
        role = message.get("role")
        if not isinstance(role, str):
            there = ", ".join(map(str, message)) or "nothing"
            raise ValueError(f"has no role in {place} (there is {there})")
        if role not in ROLES and f"'{role}'" not in self.template.text and f'"{role}"' not in self.template.text:
            raise ValueError(
                f"has a wrong role in {place} ('{role}'); it must be {', '.join(ROLES)}, or one that the template names"
            )
        content = message.get("content")
        if not isinstance(content, (str, list)) and not (content is None and message.get("tool_calls")):
            raise ValueError(f"has no text as content in {place} but {kind_of(content)}")

    def _as_json(self, messages: Any, tools: Any) -> str:
        try:
            written = json.dumps({"messages": messages, "tools": tools}, ensure_ascii=False)
            written.encode("utf-8")
        except UnicodeEncodeError as error:
            raise ValueError(f"has half of a surrogate pair in '{self.field.name}'") from error
        except (TypeError, ValueError, RecursionError) as error:
            raise ValueError(f"has something in '{self.field.name}' that is not JSON ({error})") from error
        if (escaped := self._in_json.search(written)) is not None:
            raise self._holds(parse_json(f'"{escaped[0]}"', str))
        return written

    def _check_parts(self, message: Any) -> None:
        """Parts are written one behind the other, stripped or not: together they may be what none of them is."""
        if isinstance(content := message.get("content"), list):
            texts = texts_of(content)
            for joined in ("".join(texts), "".join(text.strip() for text in texts)):
                if (found := self._marker.search(joined)) is not None:
                    raise self._holds(found[0])

    def _holds(self, marker: str) -> ValueError:
        kind = "special token" if marker in self._special else "template's token"
        return ValueError(
            f"has the {kind} {marker} in a message of '{self.field.name}', where it would be read as one; write it "
            "otherwise"
        )


def _any_of(texts: Sequence[str]) -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, texts)) or "(?!)")


def trained_tokens(
    conversation: Conversation, begins: npt.NDArray[np.int64], ends: npt.NDArray[np.int64]
) -> npt.NDArray[np.bool_]:
    """Whether each token is trained: it is when any of its characters is.

    A token without a character of its own, such as the first bytes of one, counts as the character it stands before.

    Args:
        conversation: The text.
        begins: First character of each token.
        ends: Behind the last.
    """
    counted = np.zeros(len(conversation.text) + 1, np.int64)
    for begin, end in conversation.trained:
        counted[begin + 1 : end + 1] = 1
    before = np.cumsum(counted)  # trained characters before each place
    last = np.minimum(np.maximum(ends, begins + 1), len(conversation.text))
    return before[last] > before[begins]


def ended(
    conversation: Conversation, ids: Ids, spans: Spans, end_of_document_id: int
) -> tuple[Ids, npt.NDArray[np.bool_]]:
    """A conversation's ids with the end of the document, and whether each is trained.

    Args:
        conversation: The text.
        ids: Of the text, as `TextTokenizer.encode_with_spans` gives them.
        spans: Where each of them begins and ends.
        end_of_document_id: Put at the end where the text does not end with it.
    """
    mask = trained_tokens(conversation, spans[:, 0], spans[:, 1])
    if len(ids) and ids[-1] == end_of_document_id:
        return ids, mask
    # Trained where nothing else tells the model to stop: most templates end a turn with a marker.
    return np.append(ids, np.uint32(end_of_document_id)), np.append(mask, conversation.stops_at_end)


def without_missing(value: Any) -> Any:
    """A row of Parquet without the fields that it lacks: the format gives every row the fields of all, as None."""
    if isinstance(value, dict):
        return {key: without_missing(one) for key, one in value.items() if one is not None}
    return [without_missing(one) for one in value] if isinstance(value, list) else value
