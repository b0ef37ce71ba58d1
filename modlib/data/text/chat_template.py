"""Conversations to text by a Jinja2 template, in a sandbox, with the places of what is trained."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from jinja2.exceptions import SecurityError, TemplateSyntaxError, UndefinedError

from modlib.data.text.chat_contents import (
    ANSWER,
    PROBE,
    SYSTEM,
    Contents,
    Message,
    RenderError,
    learn_contents,
    texts_of,
)
from modlib.data.text.chat_turns import MARK_IT, TemplateFault, Turns, answers, learn_turns
from modlib.data.text.sources import MOST_DOCUMENT_BYTES
from modlib.data.text.template_sandbox import BEGIN, END, LimitReached, hidden_names, sandbox
from modlib.data.text.token_choice import BEGIN_OF_TEXT_TOKENS, END_OF_DOCUMENT_TOKENS, named_in_folder
from modlib.data.text.tokenizer import TextTokenizer
from modlib.runtime.errors import ConfigError, unreadable

_TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")


@dataclass(frozen=True)
class Conversation:
    """What a conversation is as text.

    Args:
        text: As the template writes it.
        trained: Where what is trained begins and ends in it, in characters; in order.
        stops_at_end: Whether the end-of-document token behind it is trained: the last answer has no end of its own.
    """

    text: str
    trained: Sequence[tuple[int, int]]
    stops_at_end: bool = False


class ChatTemplate:
    """Renders conversations as Hugging Face's `apply_chat_template` does. Survives pickling.

    The template runs in Jinja2's sandbox and is given plain JSON values alone. It cannot see the time or draw random
    numbers (`strftime_now` is not defined): the same conversation is the same text on any day.

    Trained is what its `{% generation %}` blocks hold. A template without them is rendered up to each message of the
    assistant, with the prompt for it, and with the message: what the message adds is trained, its end marker too.
    Where such beginnings are not the whole's (Qwen3), or the assistant opens the conversation, answers are found by
    marks in their contents, between a prompt and an end as a made-up conversation has them.

    Args:
        text: The template.
        variables: Given to it beside the conversation, such as bos_token.
        name: Where it comes from, for errors.

    Raises:
        ConfigError: It is no Jinja2 template, or reaches for what the sandbox keeps from it.
    """

    def __init__(self, text: str, variables: Mapping[str, str], name: str) -> None:
        self.text, self.variables, self.name = text, dict(variables), name
        environment = self._sandbox = sandbox()
        try:
            with self._limits():
                tree = environment.parse(text)
                self._template = environment.from_string(text)
        except RecursionError as error:
            raise ConfigError(
                f"chat template {name} must be a Jinja2 template that is nested less deeply; write it flatter"
            ) from error
        except TemplateSyntaxError as error:
            raise ConfigError(
                f"chat template {name} (line {error.lineno}) must be a Jinja2 template; {error.message}"
            ) from error
        if hidden := next(hidden_names(tree), None):
            raise self._stopped(f"'{hidden}' is asked for")
        self.has_generation_blocks = environment.has_generation_blocks

    def __reduce__(self) -> tuple[Any, ...]:
        return (ChatTemplate, (self.text, self.variables, self.name))

    @property
    def sha256(self) -> str:
        """Of the template's text, in hex."""
        return hashlib.sha256(self.text.encode("utf-8", "surrogatepass")).hexdigest()

    def conversation(self, messages: Sequence[Message], tools: Any = None) -> Conversation:
        """Render a conversation, and tell what of it is trained.

        Args:
            messages: Of plain JSON values.
            tools: What the template is told of tools; None is nothing.

        Raises:
            ConfigError: The template reaches for what the sandbox keeps from it, of which nothing ran; or takes more
                time or memory than `RENDER_LIMIT_S` and `RENDER_LIMIT_BYTES`.
            ValueError: The template fails, or what is trained cannot be told; the message completes "line 3 ...".
        """
        with self._limits():
            return self._conversation(messages, tools)

    def _conversation(self, messages: Sequence[Message], tools: Any) -> Conversation:
        given = self.contents.given(messages)
        text = self._render(given, tools)
        if self.has_generation_blocks:
            return _without_marks(text)
        found = answers(partial(self._render, tools=tools), text, given, self.turns)
        if found is not None:
            return Conversation(text, found)
        if any(one["role"] == "assistant" for one in messages[:-1]) and not self._tells_earlier_answers:
            raise self._fault(self._fault_of_earlier_answers())
        raise ValueError(f"is rendered so that what is trained cannot be told; the chat template has to {MARK_IT}")

    @cached_property
    def contents(self) -> Contents:
        """Which contents it reads."""
        return learn_contents(self._render)

    @cached_property
    def turns(self) -> Turns:
        """What it writes around an answer; for a template without generation blocks.

        Raises:
            ConfigError: It cannot be told where an answer begins.
        """
        try:
            return learn_turns(lambda messages, **how: self._render(self.contents.given(messages), **how))
        except TemplateFault as error:
            raise self._fault(error) from error

    @cached_property
    def _tells_earlier_answers(self) -> bool:
        given = self.contents.given(PROBE)
        try:
            return answers(self._render, self._render(given), given, self.turns) is not None
        except RenderError:  # it allows one question
            return True

    def _fault_of_earlier_answers(self) -> TemplateFault:
        first = self._render(self.contents.given(PROBE)).partition(ANSWER)[0]
        prompt = self.turns.prompt
        reason = "writes an earlier answer otherwise than the last one"
        if prompt.lstrip() in first:
            return TemplateFault(reason)
        remedy = f"{MARK_IT}, or end each conversation with its first answer"
        return TemplateFault(f"{reason}, not behind {prompt[-40:]!r}, which announces an answer", remedy)

    def probe(self) -> Sequence[Message] | None:
        """A made-up conversation that it can render: two questions and answers, or one; None where it renders neither.

        Raises:
            ConfigError: As `conversation` does; and it cannot be told where an answer begins.
        """
        one, two = PROBE[:2], PROBE
        with self._limits():
            if not self.has_generation_blocks and self.turns and not self._tells_earlier_answers:
                two = one
        return next((some for some in (two, [SYSTEM, *two], one, [SYSTEM, *one]) if self._tried(some)), None)

    def _tried(self, messages: Sequence[Message]) -> Conversation | None:
        try:
            return self.conversation(messages)
        except ConfigError:
            raise
        except ValueError:
            return None

    def around_messages(self) -> str:
        """What it writes before and behind messages of a system, a user and an assistant.

        Raises:
            ConfigError: As `probe` does.
        """
        parts: list[str] = []
        probe = self.probe() or []
        for messages in (probe, [SYSTEM, *probe]):
            if (found := self._tried(messages)) is None:
                continue
            said = iter(one for one in messages if one["role"] == "assistant")
            place = 0
            for begin, end in found.trained:
                (content,) = texts_of(next(said, SYSTEM)["content"])
                parts += [found.text[place:begin], found.text[begin:end].rpartition(content)[2]]
                place = end
            parts.append(found.text[place:])
        return "\n".join(parts)

    def _fault(self, fault: TemplateFault) -> ConfigError:
        return ConfigError(
            f"chat template {self.name} must show what the assistant says in a conversation; it {fault.reason}: "
            f"{fault.remedy}"
        )

    def render(self, messages: Sequence[Message], tools: Any = None, *, add_generation_prompt: bool = False) -> str:
        """The text, with marks where generation blocks begin and end.

        Raises:
            ConfigError: As `conversation` does.
            ValueError: The template fails.
        """
        with self._limits():
            return self._render(messages, tools, add_generation_prompt=add_generation_prompt)

    def _render(self, messages: Sequence[Message], tools: Any = None, *, add_generation_prompt: bool = False) -> str:
        told = {"messages": list(messages), "tools": tools, "documents": None}
        try:
            text = self._template.render(**self.variables, **told, add_generation_prompt=add_generation_prompt)
            if len(text) > MOST_DOCUMENT_BYTES:
                raise LimitReached(f"{MOST_DOCUMENT_BYTES} characters (MOST_DOCUMENT_BYTES)")
            return text
        except SecurityError as error:
            raise self._stopped(str(error)) from error
        except (LimitReached, MemoryError):
            raise
        except UndefinedError as error:
            if "'strftime_now'" in str(error):  # no row's fault
                raise ConfigError(
                    f"chat template {self.name} must write the same text on any day; it asks for the date "
                    "(strftime_now): write a date in its place"
                ) from error
            raise _failure(error) from error
        except Exception as error:  # whatever the template does with values it did not expect
            raise _failure(error) from error

    @contextmanager
    def _limits(self) -> Iterator[None]:
        try:
            with self._sandbox.limited():
                yield
        except LimitReached as error:
            raise ConfigError(
                f"chat template {self.name} must render a conversation within {error}; it took more, and was stopped: "
                "use another template"
            ) from error

    def _stopped(self, why: str) -> ConfigError:
        return ConfigError(
            f"chat template {self.name} must stay in its sandbox; it was stopped ({why}): use a template you trust"
        )


def _failure(error: Exception) -> RenderError:
    return RenderError(f"makes the chat template fail ({type(error).__name__}: {error})")


def find_chat_template(tokenizer: TextTokenizer, path: Path | None) -> ChatTemplate:
    """A template from a file, or the one in the tokenizer's folder, with the tokenizer's special tokens as variables.

    Args:
        tokenizer: Its folder's chat_template.jinja, or `chat_template` in its tokenizer_config.json, is taken.
        path: A file that holds a template, to be taken instead.

    Raises:
        ConfigError: There is none, it cannot be read, or is no template.
    """
    folder = tokenizer.path if tokenizer.path.is_dir() else tokenizer.path.parent
    named = named_in_folder(folder)
    variables = _special_tokens(tokenizer, named)
    if path is None and (folder / "chat_template.jinja").is_file():
        path = folder / "chat_template.jinja"
    if path is not None:
        try:
            return ChatTemplate(path.read_text("utf-8"), variables, str(path))
        except OSError as error:
            raise unreadable(
                f"chat template {path} cannot be read: {error.strerror}; check the path", error, "model"
            ) from error
        except UnicodeDecodeError as error:
            raise ConfigError(f"chat template {path} must be UTF-8 text; byte {error.start} is not") from error
    found = named.get("chat_template")
    if isinstance(found, list):  # several by name
        found = {one.get("name"): one.get("template") for one in found if isinstance(one, dict)}.get("default")
    if not isinstance(found, str):
        raise ConfigError(
            f"chat template (None) must be given: {folder} has none in chat_template.jinja or tokenizer_config.json; "
            "add --chat_template FILE"
        )
    return ChatTemplate(found, variables, str(folder / "tokenizer_config.json"))


def _special_tokens(tokenizer: TextTokenizer, named: Mapping[str, Any]) -> dict[str, str]:
    """What the tokenizer's files call bos_token, eos_token and so on; well-known ones where there are no such files."""
    found = {}
    for name in _TOKENS:
        value = named.get(name)
        text = value.get("content") if isinstance(value, dict) else value
        if isinstance(text, str):
            found[name] = text
    if not named:
        special = set(tokenizer.special_tokens)
        for name, known in (("bos_token", BEGIN_OF_TEXT_TOKENS), ("eos_token", END_OF_DOCUMENT_TOKENS)):
            if (token := next((one for one in known if one in special), None)) is not None:
                found[name] = token
    return found


def _without_marks(text: str) -> Conversation:
    parts: list[str] = []
    trained: list[tuple[int, int]] = []
    length = 0
    for number, piece in enumerate(text.split(BEGIN)):
        inside, mark, outside = piece.partition(END)
        if bool(mark) != (number > 0) or END in outside:
            raise ValueError("is rendered with one {% generation %} block within another, which must not be")
        if number:
            trained.append((length, length + len(inside)))
        parts += [inside, outside]
        length += len(inside) + len(outside)
    return Conversation("".join(parts), trained)
