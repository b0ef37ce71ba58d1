"""How a chat template writes an answer, learned from a made-up conversation; and where the answers in a text are."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from modlib.data.text.chat_contents import ANSWER, PROBE, SYSTEM, Message, Render, RenderError, parts_of

Span = tuple[int, int]

# Halves of surrogate pairs, as the marks of generation blocks: no text has them.
_BEGIN, _END = "\ud801", "\udc01"
_SPACED: Message = {"role": "assistant", "content": f"{ANSWER} \n"}
_WITHOUT_MARKS = {ord(_BEGIN): None, ord(_END): None}


MARK_IT = "mark what is trained with {% generation %} and {% endgeneration %}, as docs/data.md shows (What is trained)"


class TemplateFault(Exception):
    """Why it cannot be told what of a template's text is the assistant's.

    Args:
        reason: Completes "it ...", said of the template.
        remedy: What to do.
    """

    def __init__(self, reason: str, remedy: str = MARK_IT) -> None:
        super().__init__(reason)
        self.reason, self.remedy = reason, remedy


@dataclass(frozen=True)
class Turns:
    """What a template writes around an answer.

    Args:
        prompt: What add_generation_prompt adds; empty where it adds nothing.
        header: What stands before an answer though no prompt announces it, and is not trained.
        end: What follows an answer, up to the next prompt.
        closing: What is written at the end of a whole conversation alone, such as Phi-3's end of text.
        strips: Whether white space at an answer's end is left out.
    """

    prompt: str
    header: str
    end: str
    closing: str
    strips: bool = False


def learn_turns(render: Render) -> Turns:
    """Find out how a template without generation blocks writes an answer.

    Raises:
        TemplateFault: It cannot be told where an answer begins.
    """
    reason = ""
    for opening in ([], [SYSTEM]):
        asked, told = [*opening, *PROBE[:1]], [*opening, *PROBE[:2]]
        try:
            before, prompted, whole = render(asked), render(asked, add_generation_prompt=True), render(told)
        except RenderError as error:
            reason = reason or str(error)
            continue
        again, spaced = _or_nothing(render, told, add_generation_prompt=True), [*told[:-1], _SPACED]
        return replace(_learned(before, prompted, whole, again), strips=_or_nothing(render, spaced) == whole)
    raise TemplateFault(f"does not render a question and an answer, which {reason}", f"correct it, or {MARK_IT}")


def _or_nothing(render: Render, messages: Sequence[Message], **how: bool) -> str:
    try:
        return render(messages, **how)
    except RenderError:  # it wants no prompt behind an answer
        return ""


def _learned(before: str, prompted: str, whole: str, again: str) -> Turns:
    answer = whole.rfind(ANSWER)
    if answer < 0:
        raise TemplateFault("writes nothing of it", "write message.content")
    tail = whole[answer + len(ANSWER) :]
    prompt = prompted[_first_difference(before, prompted) :]
    closing = before.removeprefix(prompted) if not prompt else ""
    if not prompt:
        if not whole.startswith(prompted):
            raise TemplateFault("ignores add_generation_prompt, and writes a question otherwise once an answer follows")
        lead = whole[len(prompted) : answer]
        return Turns("", lead if lead.strip() else "", tail.removesuffix(closing), closing)
    if prompt.lstrip() not in whole[:answer]:
        raise TemplateFault(
            f"announces an answer with {prompt[-40:]!r}, but does not write that before it ({whole[:answer][-40:]!r})"
        )
    if again.startswith(whole[: answer + len(ANSWER)]):
        between = again[answer + len(ANSWER) :].removesuffix(prompt)
        if tail.startswith(between):
            return Turns(prompt, "", between, tail[len(between) :])
    return Turns(prompt, "", tail, "")


def _first_difference(before: str, prompted: str) -> int:
    """Where the prompt begins: not within a marker such as <|end|> whose first characters both have."""
    if prompted.startswith(before):
        return len(before)
    pairs = enumerate(zip(before, prompted, strict=False))
    place = next((at for at, (one, other) in pairs if one != other), len(prompted))
    marker = re.search(r"[<\[][^<>\[\]\s]*$", prompted[:place])
    return place if marker is None else marker.start()


def answers(render: Render, text: str, messages: Sequence[Message], turns: Turns) -> list[Span] | None:
    """Where each message of the assistant is in the text of a conversation, in characters; None where one is not found.

    Args:
        render: Renders beginnings of the conversation.
        text: The whole of it.
        messages: Of the conversation.
        turns: Of the template.
    """
    found: list[Span] = []
    marked: dict[int, Span] | None = None
    for number, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        span = _by_beginnings(render, text, messages, number, turns)
        if span is None or (found and span[0] < found[-1][1]):
            marked = _by_marks(render, text, messages, turns) if marked is None else marked
            span = marked.get(number)
        if span is None:
            return None
        found.append(span)
    return found


def _by_beginnings(render: Render, text: str, messages: Sequence[Message], number: int, turns: Turns) -> Span | None:
    """What a message adds to the text of the conversation up to it, with the prompt for it."""
    if number == 0:  # of no messages there is no text, and most templates fail
        return None
    try:
        before = render(messages[:number], add_generation_prompt=True)
        after = text if number + 1 == len(messages) else render(messages[: number + 1])
    except RenderError:  # it refuses a conversation that ends there
        return None
    after = after.removesuffix(turns.closing)
    if not (text.startswith(after) and after.startswith(before) and before.endswith(turns.prompt)):
        return None
    begin = len(before)
    return (begin + len(turns.header), len(after)) if after.startswith(turns.header, begin) else None


def _by_marks(render: Render, text: str, messages: Sequence[Message], turns: Turns) -> dict[int, Span]:
    """Answers by number of the message, found by marks that are put into their contents and come out in the text."""
    numbers = [number for number, one in enumerate(messages) if one["role"] == "assistant"]
    given = [_with_marks(one) if one["role"] == "assistant" else one for one in messages]
    whole = [one for one in given if one is not None]
    try:
        marked = render(whole) if len(whole) == len(messages) else ""
    except RenderError:
        return {}
    if marked.translate(_WITHOUT_MARKS) != text or marked.count(_END) != len(numbers):
        return {}
    found: dict[int, Span] = {}
    place = 0  # behind the answer before
    for number, piece in zip(numbers, marked.split(_END), strict=False):
        if piece.count(_BEGIN) > 1:
            return {}
        stop = place + len(piece) - piece.count(_BEGIN)
        content = place + piece.find(_BEGIN) if _BEGIN in piece else None
        begin = _begin(text, place, content, stop, turns)
        end = _end(text, stop, messages[number], turns)
        if begin is not None and end is not None:
            found[number] = (begin, end)
        place = stop
    return found


def _with_marks(message: Message) -> Message | None:
    """A message with marks around its text, or around the name of its first tool call; None where it has neither."""
    parts = [dict(one) for one in parts_of(message.get("content"))]
    texts = [one for one in parts if isinstance(one.get("text"), str)]
    calls = message.get("tool_calls")
    if calls and not any(one["text"].strip() for one in texts):
        named = _with_marked_name(calls[0]) if isinstance(calls, list) else None
        return None if named is None else {**message, "tool_calls": [named, *calls[1:]]}
    if not texts:
        return None
    texts[0]["text"] = _inside(texts[0]["text"], _BEGIN, "")
    texts[-1]["text"] = _inside(texts[-1]["text"], "", _END)
    return {**message, "content": parts if isinstance(message["content"], list) else parts[0]["text"]}


def _inside(text: str, begin: str, end: str) -> str:
    """A text with something put in behind the white space it begins with, and before that at its end: both may go."""
    stripped = text.strip()
    head, _, tail = text.partition(stripped) if stripped else (text, "", "")
    return f"{head}{begin}{stripped}{end}{tail}"


def _with_marked_name(call: Any) -> Any:
    if not isinstance(call, dict):
        return None
    if isinstance(call.get("function"), dict):
        return {**call, "function": _with_marked_name(call["function"])}
    return {**call, "name": f"{_BEGIN}{call['name']}{_END}"} if isinstance(call.get("name"), str) else None


def _begin(text: str, place: int, content: int | None, stop: int, turns: Turns) -> int | None:
    """Where an answer begins: behind the one prompt that is between the answer before and its own text."""
    announced = (turns.prompt or turns.header).lstrip()
    if not announced:
        return None
    limit = stop if content is None else content
    if content is not None and text.endswith(announced, place, content):
        return content
    at = text.find(announced, place, limit)
    return at + len(announced) if at >= 0 and text.find(announced, at + 1, limit) < 0 else None


def _end(text: str, stop: int, message: Message, turns: Turns) -> int | None:
    """Where an answer ends: behind what follows every answer; tool calls may be before that."""
    if message.get("tool_calls"):
        at = text.find(turns.end, stop) if turns.end.strip() else -1
        return at + len(turns.end) if at >= 0 else None
    last = parts_of(message["content"])[-1].get("text", "")
    kept = "" if turns.strips else last[len(last.rstrip()) :]
    for end in (kept + turns.end, turns.end):
        if text.startswith(end, stop):
            return stop + len(end)
    return None
