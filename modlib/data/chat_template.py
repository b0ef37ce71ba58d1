"""Conversations to text by a Jinja2 template, in a sandbox, with the places of what is trained."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import nodes
from jinja2.exceptions import SecurityError, TemplateError, TemplateSyntaxError
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from modlib.data.tokenizer import BEGIN_OF_TEXT_TOKENS, END_OF_DOCUMENT_TOKENS, TextTokenizer, named_in_folder
from modlib.runtime.errors import ConfigError

# Halves of surrogate pairs: no text that can be written as UTF-8 has them, so that they stand for nothing else.
_BEGIN, _END = "\ud800", "\udc00"
_TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")

Message = Mapping[str, Any]


@dataclass(frozen=True)
class Conversation:
    """What a conversation is as text.

    Args:
        text: As the template writes it.
        trained: Where what is trained begins and ends in it, in characters; in order.
    """

    text: str
    trained: Sequence[tuple[int, int]]


class ChatTemplate:
    """Renders conversations as Hugging Face's `apply_chat_template` does. Survives pickling.

    The template runs in Jinja2's sandbox and is given plain JSON values alone. It cannot see the time or draw random
    numbers (`strftime_now` is not defined): the same conversation is the same text on any day.

    Trained is what stands in its `{% generation %}` blocks. A template without them is rendered up to each assistant
    message, with the prompt for it, and with the message: what the message adds is trained, its end marker too.

    Args:
        text: The template.
        variables: Given to it beside the conversation, such as bos_token.
        name: Where it comes from, for errors.

    Raises:
        ConfigError: It is no Jinja2 template, or reaches for what the sandbox keeps from it.
    """

    def __init__(self, text: str, variables: Mapping[str, str], name: str) -> None:
        self.text, self.variables, self.name = text, dict(variables), name
        environment = _sandbox()
        try:
            tree = environment.parse(text)
            self._template = environment.from_string(text)
        except TemplateSyntaxError as error:
            raise ConfigError(
                f"chat template {name} (line {error.lineno}) must be a Jinja2 template; {error.message}"
            ) from error
        if hidden := next(_hidden_names(tree), None):
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
            ConfigError: The template reaches for what the sandbox keeps from it; nothing of that ran.
            ValueError: The template fails, or what is trained cannot be told; the message completes "line 3 ...".
        """
        text = self.render(messages, tools)
        if self.has_generation_blocks:
            return _without_marks(text)
        trained = []
        for number, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            before = self.render(messages[:number], tools, add_generation_prompt=True)
            after = text if number + 1 == len(messages) else self.render(messages[: number + 1], tools)
            if not (text.startswith(after) and after.startswith(before)):
                raise ValueError(
                    f"is rendered otherwise up to message {number} than as a whole, so that what is trained cannot be "
                    "told; the template has to mark it with {% generation %} and {% endgeneration %}"
                )
            trained.append((len(before), len(after)))
        return Conversation(text, trained)

    def render(self, messages: Sequence[Message], tools: Any = None, *, add_generation_prompt: bool = False) -> str:
        """The text, with marks where generation blocks begin and end."""
        told = {"messages": list(messages), "tools": tools, "documents": None}
        try:
            return self._template.render(**self.variables, **told, add_generation_prompt=add_generation_prompt)
        except SecurityError as error:
            raise self._stopped(str(error)) from error
        except Exception as error:  # whatever the template does with values it did not expect
            raise ValueError(f"makes the chat template fail ({type(error).__name__}: {error})") from error

    def _stopped(self, why: str) -> ConfigError:
        return ConfigError(
            f"chat template {self.name} must stay in its sandbox; it was stopped ({why}): use a template you trust"
        )


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
            raise ConfigError(f"chat template {path} cannot be read: {error.strerror}; check the path") from error
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


class _Sandbox(ImmutableSandboxedEnvironment):
    has_generation_blocks = False

    def unsafe_undefined(self, obj: Any, attribute: str) -> Any:
        """Stop at once: Jinja2 itself would go on with an empty value, and print nothing."""
        raise SecurityError(f"'{attribute}' of {type(obj).__name__} is asked for")


class _GenerationBlocks(Extension):
    """`{% generation %}` ... `{% endgeneration %}`: what is in it stands between marks."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        self.environment.has_generation_blocks = True  # type: ignore[attr-defined]
        return nodes.CallBlock(self.call_method("_marked"), [], [], body).set_lineno(line)

    def _marked(self, caller: Callable[[], str]) -> str:
        return f"{_BEGIN}{caller()}{_END}"


class _Names(Namespace):
    """What `namespace(...)` makes: without names that begin with an underscore, which Python has its own for."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        values = dict(*args[1:], **kwargs)
        for name in values:
            _checked_name(name)
        Namespace.__init__(args[0], values)

    def __setitem__(self, name: str, value: Any) -> None:
        _checked_name(name)
        super().__setitem__(name, value)


def _checked_name(name: Any) -> None:
    if str(name).startswith("_"):
        raise SecurityError(f"'{name}' of a namespace is set")


def _sandbox() -> _Sandbox:
    extensions = [_GenerationBlocks, "jinja2.ext.loopcontrols"]
    environment = _Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=extensions)
    environment.filters["tojson"] = _tojson
    environment.globals |= {"raise_exception": _raise_exception, "namespace": _Names}
    del environment.filters["random"], environment.globals["lipsum"]  # a text must not depend on chance
    return environment


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """As templates expect it: Jinja2's own writes `<` and quotes as HTML needs them."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


def _hidden_names(tree: nodes.Template) -> Iterator[str]:
    """Names that Python reserves for itself, such as `__class__`, where a template writes them out."""
    for attribute in tree.find_all(nodes.Getattr):
        if attribute.attr.startswith("__"):
            yield attribute.attr
    for constant in tree.find_all(nodes.Const):
        if isinstance(constant.value, str) and re.fullmatch(r"__\w+__", constant.value):
            yield constant.value


def _without_marks(text: str) -> Conversation:
    parts: list[str] = []
    trained: list[tuple[int, int]] = []
    length = 0
    for number, piece in enumerate(text.split(_BEGIN)):
        inside, mark, outside = piece.partition(_END)
        if bool(mark) != (number > 0) or _END in outside:
            raise ValueError("is rendered with one {% generation %} block within another, which must not be")
        if number:
            trained.append((length, length + len(inside)))
        parts += [inside, outside]
        length += len(inside) + len(outside)
    return Conversation("".join(parts), trained)
