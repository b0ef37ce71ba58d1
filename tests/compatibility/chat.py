"""What modlib makes of the chat templates of well-known families, found by rendering conversations with each."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tokenizers

from modlib.data.text.chat import Chat, trained_tokens
from modlib.data.text.chat_template import ChatTemplate
from modlib.data.text.fields import Field
from modlib.data.text.tokenizer import Tokenizer, train_byte_level_bpe
from modlib.runtime.errors import ConfigError
from tests.compatibility.chat_templates import EQUAL, FAMILIES, MARKERS, Family

VARIABLES = {"bos_token": "<s>", "eos_token": "</s>"}
Messages = list[dict[str, Any]]


class Row(NamedTuple):
    """A line of the table of chat templates.

    Args:
        family: Whose template it is.
        result: `equal`: text, ids and mask are right for every conversation; else what to do.
        checked: How that was found.
    """

    family: str
    result: str
    checked: str


def turns(first: str, *contents: str) -> Messages:
    """A conversation that begins with this role."""
    roles = ("user", "assistant") if first == "user" else ("assistant", "user")
    return [{"role": roles[number % 2], "content": content} for number, content in enumerate(contents)]


SYSTEM = {"role": "system", "content": "Be brief."}
CALL = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": {"x": [1, "é"]}}}]}
TOOL = {"role": "tool", "content": "3"}
CONVERSATIONS: dict[str, Messages] = {
    "one answer": turns("user", "Hi", "Hello."),
    "two": turns("user", "One?", "1.", "Two?", "2."),
    "three, white space at their ends": turns("user", " a ", " b\n", "c", "d  ", "e\n", "\n f"),
    "a system's message": [SYSTEM, *turns("user", "One?", "1.", "Two?", "2.")],
    "the assistant opens": turns("assistant", "Welcome!", "Hi", "Hello."),
    "the assistant opens after a system's message": [SYSTEM, *turns("assistant", "Welcome!", "Hi", "Hello.")],
    "two answers in a row": [*turns("user", "Go", "First."), *turns("assistant", "Second.", "And?", "Third.")],
    "answers like what is around them": turns("user", "assistant", "assistant\n", "user", "user: assistant"),
    "an empty answer": turns("user", "Hi", "", "Well?", "Yes."),
    "thoughts": turns("user", "One?", "<think>\na\n</think>\n\n1.", "Two?", "<think>\nb\n</think>\n\n2."),
    "a tool's call": [*turns("user", "Hi"), CALL, TOOL, *turns("assistant", "It is 3.", "Thanks", "Yes.")],
    "a question at the end": turns("user", "Hi", "Hello.", "More?"),
}


def tokenizer_of(family: Family, folder: Path) -> Tokenizer:
    """A small tokenizer with the markers of all families."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "tokenizer.json"
    if not path.exists():
        train_byte_level_bpe(
            ["user assistant system\n\nHello. One? 1."], path, vocab_size=300, end_of_document=MARKERS[0]
        )
        library = tokenizers.Tokenizer.from_file(str(path))
        library.add_special_tokens([one for one in MARKERS if one not in family.ordinary])
        library.add_tokens(list(family.ordinary))
        library.save(str(path))
    return Tokenizer(path)


def packed(chat: Chat, tokenizer: Tokenizer, messages: Messages) -> tuple[str, list[int], list[bool]]:
    """Text, ids and mask of a conversation, without the end-of-document token."""
    found = chat.conversation({"messages": messages})
    ((ids, spans),) = tokenizer.encode_with_spans([found.text])
    return found.text, ids.tolist(), trained_tokens(found, spans[:, 0], spans[:, 1]).tolist()


@cache
def _theirs(path: str) -> Any:
    import transformers

    return transformers.PreTrainedTokenizerFast(tokenizer_file=path, **VARIABLES)


def expected(tokenizer: Tokenizer, template: str, messages: Messages) -> tuple[str, list[int], list[bool]] | None:
    """The same by transformers, of a template with generation blocks; None where the template refuses it."""
    import jinja2

    theirs = _theirs(str(tokenizer.path))
    given: dict[str, Any] = {"chat_template": template}
    try:
        text = str(theirs.apply_chat_template(messages, tokenize=False, **given))
    except jinja2.exceptions.TemplateError:
        return None
    both: Any = theirs.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True, **given)
    return text, list(both["input_ids"]), (np.array(both["assistant_masks"]) > 0).tolist()


def chat_of(family: Family, tokenizer: Tokenizer, *, blocks: bool = False) -> Chat:
    """What packs conversations with a family's template.

    Raises:
        ConfigError: The template is refused.
    """
    template = ChatTemplate(family.marked if blocks else family.plain, VARIABLES, "t.jinja")
    return Chat(Field("messages", beside=("tools",)), template, tokenizer.special_tokens, tokenizer.added_tokens)


class Difference(NamedTuple):
    """A conversation that is not packed as it should be: refused, or packed otherwise."""

    conversation: str
    refused: bool
    text: str


def differences(family: Family, tokenizer: Tokenizer, *, blocks: bool) -> list[Difference]:
    """What is refused, or packed otherwise than transformers' mask of generation blocks says.

    Raises:
        ConfigError: The template is refused before there is any conversation.
    """
    found = []
    chat = chat_of(family, tokenizer, blocks=blocks)
    for name, messages in CONVERSATIONS.items():
        right = expected(tokenizer, family.marked, messages)
        try:
            ours = packed(chat, tokenizer, messages)
        except ValueError as error:
            if right is not None:
                found.append(Difference(name, True, str(error)))
            continue
        if ours != right:
            found.append(Difference(name, False, f"{ours} instead of {right}"))
    return found


def row(name: str, folder: Path) -> Row:
    """What comes of one family.

    Args:
        name: Of the family.
        folder: For the tokenizer that is made.
    """
    family = FAMILIES[name]
    tokenizer = tokenizer_of(family, folder)
    how = f"text, ids and mask of {len(CONVERSATIONS)} conversations, as transformers' mask of generation blocks"
    found = differences(family, tokenizer, blocks=True)
    if found:
        return Row(name, "wrong with generation blocks", f"{found[0].conversation}: {found[0].text}")
    try:
        found = differences(family, tokenizer, blocks=False)
    except ConfigError as error:
        found = [Difference(name, True, str(error)) for name in CONVERSATIONS]
    if wrong := next((one for one in found if not one.refused), None):
        return Row(name, "wrong", f"{wrong.conversation}: {wrong.text}")
    if not found:
        return Row(name, EQUAL, how)
    return Row(name, family.remedy, f"with blocks: {how}; without: {len(found)} of them are refused")


def rows(folder: Path) -> list[Row]:
    """The table of chat templates; tokenizers are made in the folder."""
    return [row(name, folder / str(number)) for number, name in enumerate(FAMILIES)]
