"""Recognises secrets in a config, so that none is ever written to a run folder or a tracker."""

from __future__ import annotations

import re
from typing import Any

from modlib.runtime import logs

# `tokenizer`, `num_tokens`, `eos_token` and `sample_key` are ordinary names; `hf_token` and `api_key` are not.
_OWNER = (
    "(?:api|access|auth|oauth|bearer|session|refresh|secret|private|ssh|service|account"
    "|hf|hub|huggingface|wandb|github|gitlab|slack|openai|aws)"
)
SECRET_NAME = re.compile(
    rf"(?:^|_)(?:{_OWNER}_?key|{_OWNER}_?token|secrets?|passw(?:or)?d|passphrase|credentials?)(?:_|$)|^(?:token|apikey)$"
)
SECRET_VALUE = re.compile(
    r"(?<![A-Za-z0-9])(?:hf_[A-Za-z0-9]{20,}|sk-[A-Za-z0-9_-]{20,}|gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,}"
    r"|AKIA[0-9A-Z]{16}|xox[abprs]-[A-Za-z0-9-]{10,}|glpat-[A-Za-z0-9_-]{16,})(?![A-Za-z0-9])"
)


def is_secret_name(name: str) -> bool:
    """Whether a parameter or macro of this name holds a secret when it is a string."""
    last = name.rsplit(".", 1)[-1].rsplit("/", 1)[-1]
    snake = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", last).lower()
    return bool(SECRET_NAME.search(snake))


def is_secret(name: str, value: Any) -> bool:
    """Whether binding this value to this name would write a secret down."""
    if not isinstance(value, str | bytes) or not value:
        return False
    return is_secret_name(name) or (isinstance(value, str) and bool(SECRET_VALUE.search(value)))


def redact(text: str) -> str:
    """A text without the strings that look like a key or a token."""
    return SECRET_VALUE.sub("***", text)


def without_secrets(name: str, value: Any) -> Any:
    """The value of a parameter or macro with `***` for what is a secret, also inside of lists and dicts.

    A secret is a string under a secret's name, one that looks like a key, and the value of a secret environment
    variable.
    """
    match value:
        case str() | bytes() if is_secret_name(name) and value:
            return "***"
        case str():
            return logs.redact(redact(value))
        case dict():
            return {key: without_secrets(key if isinstance(key, str) else name, item) for key, item in value.items()}
        case list() | tuple():
            return type(value)(without_secrets(name, item) for item in value)
    return value


def text_without_secrets(text: str) -> str:
    """The text of a config, line by line: strings bound to a secret's name, or that look like one, become `***`."""
    lines = []
    for line in logs.redact(redact(text)).splitlines(keepends=True):
        name, equals, value = line.partition("=")
        if equals and is_secret_name(name.strip(" #")):
            value = re.sub(r"""b?(['"])(?:\\.|(?!\1).)+\1""", "'***'", value)
        lines.append(name + equals + value)
    return "".join(lines)
