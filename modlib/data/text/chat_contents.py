"""Contents of messages, as texts and as lists of parts: which of them a chat template reads."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Message = Mapping[str, Any]
Render = Callable[..., str]
"""(messages, add_generation_prompt=False) -> text; raises RenderError where the template fails."""


class RenderError(ValueError):
    """A template fails with a conversation; the text completes "line 3 ..."."""


SYSTEM: Message = {"role": "system", "content": "Answer briefly."}
ANSWER = "No: 7 times 13."
PROBE: Sequence[Message] = (
    {"role": "user", "content": "Is 91 a prime?"},
    {"role": "assistant", "content": ANSWER},
    {"role": "user", "content": "And 97?"},
    {"role": "assistant", "content": "Yes, it is."},
)
"""A made-up conversation, whose texts no template has of its own."""


def parts_of(content: Any) -> list[Any]:
    """A content as a list of parts."""
    return content if isinstance(content, list) else [{"type": "text", "text": content}]


def texts_of(content: Any) -> list[str]:
    """The texts in a content."""
    if isinstance(content, str):
        return [content]
    return [one["text"] for one in parts_of(content) if isinstance(one, Mapping) and isinstance(one.get("text"), str)]


@dataclass(frozen=True)
class Contents:
    """Which contents a template reads.

    Args:
        only_parts: Whether it writes nothing of a content that is a text.
        parts_of: Roles whose content may be a list of parts: it is written as the same text is.
    """

    only_parts: bool
    parts_of: frozenset[str]

    def given(self, messages: Sequence[Message]) -> list[Message]:
        """Messages as the template reads them; parts that are texts are joined where it does not read parts.

        Raises:
            ValueError: A part is no text, and the template does not read parts; the message completes "line 3 ...".
        """
        return [self._given(number, message) for number, message in enumerate(messages)]

    def _given(self, number: int, message: Message) -> Message:
        content = message.get("content")
        if isinstance(content, str) and self.only_parts:
            return {**message, "content": parts_of(content)}
        if not isinstance(content, list) or self.only_parts or message["role"] in self.parts_of:
            return message
        texts = texts_of(content)
        if len(texts) < len(content):
            other = next(one for one in content if not texts_of([one]))
            kind = other.get("type") if isinstance(other, Mapping) else type(other).__name__
            raise ValueError(
                f"has a part in message {number} that is no text ({kind}), which the chat template does not read; "
                "use a template that does, or leave the part out"
            )
        return {**message, "content": "".join(texts)}


def learn_contents(render: Render) -> Contents:
    """Find out which contents a template reads, by a conversation with either."""
    texts = _tried(render, PROBE[:2])
    parts = _tried(render, [{**one, "content": parts_of(one["content"])} for one in PROBE[:2]])
    if ANSWER in parts and ANSWER not in texts:
        return Contents(True, frozenset())
    found = set()
    for number, message in enumerate(PROBE[:2]):
        mixed = list(PROBE[:2])
        mixed[number] = {**message, "content": parts_of(message["content"])}
        if ANSWER in texts and _tried(render, mixed) == texts:
            found.add(message["role"])
    return Contents(False, frozenset(found))


def _tried(render: Render, messages: Sequence[Message]) -> str:
    try:
        return render(messages)
    except RenderError:
        return ""
