"""Rows of chat data to conversations as text: what is checked of a row before a template sees it."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from modlib.data.text.chat_template import ChatTemplate, Conversation
from modlib.data.text.fields import Field, kind_of
from modlib.runtime.json_files import parse_json

ROLES = ("system", "developer", "user", "assistant", "tool", "function")
"""Roles that a message may have; others are allowed where the template names them."""


class Chat:
    """Takes the messages out of rows and renders them. Survives pickling.

    Args:
        field: Where a row has its messages; a function may also return {"messages": [...], "tools": [...]}. The row's
            own `tools`, if it has any, are given to the template.
        template: Writes them as text.
        special_tokens: Of the tokenizer: none may be in a message, where it would end a turn or begin one.
    """

    def __init__(self, field: Field, template: ChatTemplate, special_tokens: Sequence[str]) -> None:
        self.field, self.template, self.special_tokens = field, template, list(special_tokens)
        longest_first = sorted(self.special_tokens, key=len, reverse=True)
        self._special = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")

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
        # A key without a value is left out, as transformers does: "content" of a message that only calls tools.
        given = [{key: value for key, value in one.items() if value is not None} for one in plain["messages"]]
        found = self._up_to_end_markers(self.template.conversation(given, plain["tools"]))
        if not any(end > begin for begin, end in found.trained):
            raise ValueError("is rendered without any text that is trained; look at the template")
        try:
            found.text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise ValueError("is rendered with half of a surrogate pair; look at the template") from error
        return found

    def _up_to_end_markers(self, found: Conversation) -> Conversation:
        """Without the line end or space that a template writes behind a turn's end marker, a special token."""
        if self.template.has_generation_blocks:  # they say exactly what is meant
            return found
        trained = []
        for begin, end in found.trained:
            turn = found.text[begin:end].rstrip()
            trained.append((begin, begin + len(turn) if turn.endswith(tuple(self.special_tokens)) else end))
        return Conversation(found.text, trained)

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
        if (special := self._special.search(written)) is not None:
            raise ValueError(
                f"has the special token {special[0]} in a message of '{self.field.name}', where it would be read as "
                "one; write it otherwise"
            )
        return written


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


def without_missing(value: Any) -> Any:
    """A row of Parquet without the fields that it lacks: the format gives every row the fields of all, as None."""
    if isinstance(value, dict):
        return {key: without_missing(one) for key, one in value.items() if one is not None}
    return [without_missing(one) for one in value] if isinstance(value, list) else value
