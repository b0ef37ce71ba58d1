"""What to see of a chat template before data is packed with it: one conversation with its mask, and how answers end."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from modlib.data.text.chat import Chat, ended
from modlib.data.text.tokenizer import TextTokenizer

TRAINED_MARKS = ("\u27e6", "\u27e7")
"""White square brackets, around what is trained where text is shown."""

MOST_SHOWN = 2000
"""Characters; of a longer text (a long message of the system, say) the end is shown."""


@dataclass(frozen=True)
class ChatProbe:
    """A made-up conversation as it is packed.

    Args:
        shown: Its text, with what is trained in TRAINED_MARKS.
        warning: Why a model would not learn to stop, or learns it by other means than an end marker; None when it does.
    """

    shown: str
    warning: str | None


def probe_chat(chat: Chat, tokenizer: TextTokenizer, end_of_document_id: int) -> ChatProbe | None:
    """Pack a made-up conversation; None where the template does not take one of a user and an assistant.

    Args:
        chat: Renders it.
        tokenizer: Makes its ids.
        end_of_document_id: Follows a document.

    Raises:
        ConfigError: See `ChatTemplate.probe`.
    """
    messages = chat.template.probe()
    if messages is None:
        return None
    try:
        found = chat.rendered(messages)
    except ValueError:  # blocks that train nothing of it
        return None
    ((ids, spans),) = tokenizer.encode_with_spans([found.text])
    shown = with_marks(tokenizer, *ended(found, ids, spans, end_of_document_id))
    shown = shown if len(shown) <= MOST_SHOWN else f"... {shown[-MOST_SHOWN:]}"
    begin, end = found.trained[0]
    return ChatProbe(shown, _warning(chat, found.text[begin:end].rstrip(), found.text[end:].lstrip()))


def with_marks(
    tokenizer: TextTokenizer,
    ids: npt.NDArray[np.integer[Any]],
    trained: npt.NDArray[np.bool_],
    *,
    skip_special_tokens: bool = False,
) -> str:
    """The text of ids, with those that are trained in TRAINED_MARKS.

    Args:
        tokenizer: Made them.
        ids: Of tokens.
        trained: Whether each is.
        skip_special_tokens: Whether special tokens are left out.
    """
    borders = np.flatnonzero(np.diff(trained, prepend=~trained[:1], append=~trained[-1:])).tolist()
    texts = []
    for begin, end in pairwise(borders):
        text = tokenizer.decode(ids[begin:end], skip_special_tokens=skip_special_tokens)
        texts.append(text.join(TRAINED_MARKS) if trained[begin] else text)
    return "".join(texts)


def _warning(chat: Chat, answer: str, behind: str) -> str | None:
    """What to say of how the first answer ends, of which this is the text, and what follows it."""
    template = chat.template
    end = chat.marker_ending(answer)
    if end is None and template.has_generation_blocks and (following := chat.marker_beginning(behind)) is not None:
        return (
            f"generation blocks of chat template {template.name} leave out {following}, which follows an answer: the "
            "model would not learn to stop; put it before {% endgeneration %}"
        )
    if end is None:
        return (
            f"chat template {template.name} writes no special token behind an answer: the model learns to stop "
            "only from the end-of-document token behind the last one; write {{ eos_token }} behind each answer"
        )
    if not template.has_generation_blocks and chat.marker_ending(template.turns.end.rstrip()) is None:
        return (
            f"chat template {template.name} has no end of an answer but what begins the next turn ({end}): that is "
            "trained with the answer, and the end-of-document token behind the last one; generation has to stop at both"
        )
    return None
