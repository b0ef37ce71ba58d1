"""Which token ends a document, or begins a text, where none is named: special tokens alone are looked at."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from modlib.runtime.errors import ConfigError
from modlib.runtime.json_files import JSONError, read_json

logger = logging.getLogger("modlib")

END_OF_DOCUMENT_TOKENS = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>")
"""Tried in this order among the special tokens when no end-of-document token is named."""
BEGIN_OF_TEXT_TOKENS = ("<|begin_of_text|>", "<s>", "<bos>", "<|startoftext|>", "<|endoftext|>")
"""Tried likewise when no token to begin with is named; GPT-2 begins with what ends a document."""
_LISTED = 20  # special tokens in a message


class HasTokens(Protocol):
    """What is asked of a tokenizer."""

    path: Path

    def is_special(self, token_id: int) -> bool:
        """Whether an id stands for no text."""
        ...

    @property
    def special_tokens(self) -> list[str]:
        """The texts of all ids that stand for no text."""
        ...


def choose_token(
    tokenizer: HasTokens,
    what: str,
    find: Callable[[str], int | None],
    *,
    token: str | None,
    known: Sequence[str],
    named: str | None = None,
    kind: str = "token",
    why_not: str = "",
) -> int:
    """The id of the token that is named, or else of a special one; an ordinary one is told of in a warning.

    Tried are the well-known names, of which the first that is a *special* token is taken: Gemma has the HTML tag `</s>`
    as an ordinary one. Then what the tokenizer's folder names.

    Args:
        tokenizer: Its own.
        what: The token is for, in messages: "end-of-document token".
        find: The id of a text, None where there is no such token.
        token: What the user names; None leaves the choice to this function.
        known: Well-known names.
        named: What the tokenizer's folder names; None where it names none, or one that is for something else.
        kind: What the tokenizer calls its tokens.
        why_not: Why the folder's is not taken, for the message.

    Raises:
        ConfigError: There is no such token; the message lists the special ones.
    """
    wanted = (token,) if token is not None else known
    for candidate in wanted:
        found = find(candidate)
        if found is not None and (token is not None or tokenizer.is_special(found)):
            break
    else:
        candidate, found = named or "", None if named is None or token is not None else find(named)
    if found is None:
        must = f"a {kind}" if token is not None else f"a special {kind}"
        special = ", ".join(tokenizer.special_tokens[:_LISTED]) or "it has none, so name one that no text holds"
        if ordinary := [one for one in wanted if find(one) is not None]:
            why_not = f", which has {ordinary[0]} as an ordinary one{why_not}"
        raise ConfigError(
            f"{what} ({' or '.join(wanted)}) must be {must} of {tokenizer.path}{why_not}; "
            f"name one of its {'control pieces' if kind == 'piece' else 'special tokens'}: {special}"
        )
    warn_of_ordinary_token(tokenizer, what, candidate, found)
    return found


def warn_of_ordinary_token(tokenizer: HasTokens, what: str, token: str, token_id: int) -> None:
    """Tell when a token that was chosen for the border of documents may be made of their text as well."""
    if not tokenizer.is_special(token_id):
        logger.warning(
            "%s (%r) is an ordinary token of %s, which text can hold: documents will seem to %s within; its special "
            "tokens are %s",
            what,
            token,
            tokenizer.path,
            "begin" if what == "bos_token" else "end",
            ", ".join(tokenizer.special_tokens[:_LISTED]) or "none",
        )


def named_in_folder(folder: Path) -> dict[str, Any]:
    """bos_token, eos_token, pad_token and model_max_length as the files beside a tokenizer name them."""
    found: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        try:
            content = read_json(folder / name, dict[str, Any])
        except JSONError:
            continue
        found |= {key: value for key, value in content.items() if value is not None}
    return found


def text_of_named(named: Any) -> str | None:
    """The text of a token as a folder's files name one: a text, or an object with `content`."""
    text = named.get("content") if isinstance(named, dict) else named
    return text if isinstance(text, str) else None


def end_in_folder(folder: Path) -> tuple[str | None, str]:
    """The eos_token of a folder as an end of documents, and why it is none where it ends the turns of a chat.

    Llama 3.1's eos_token is `<|eot_id|>` and Qwen 3's `<|im_end|>`: what generation stops at, within a document. The
    folder's chat template shows it, which writes it behind what a user says. DeepSeek's template writes its
    `<｜end▁of▁sentence｜>` behind answers alone, as it ends documents.
    """
    named = named_in_folder(folder)
    eos = text_of_named(named.get("eos_token"))
    if eos is None:
        return None, ""
    for template in _templates(folder, named):
        from modlib.data.text.turn_end import ends_a_users_turn  # where it is used: jinja2 takes time to import

        if ends_a_users_turn(template, eos, named):
            return None, f", and the folder's eos_token ({eos}) ends the turns of its chat template, not documents"
    return eos, ""


def _templates(folder: Path, named: Mapping[str, Any]) -> list[str]:
    """Texts of the chat templates of a folder."""
    try:
        return [(folder / "chat_template.jinja").read_text("utf-8")]
    except (OSError, UnicodeDecodeError):
        pass
    found = named.get("chat_template")
    several = [one.get("template") for one in found if isinstance(one, dict)] if isinstance(found, list) else [found]
    return [one for one in several if isinstance(one, str)]
