"""Whether a chat template ends turns with a token: a conversation is rendered, and looked at."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from modlib.data.text.template_sandbox import BEGIN, END, hidden_names, sandbox

_QUESTION, _ANSWER = "fq7 question", "fa7 answer"


def ends_a_users_turn(template: str, token: str, named: Mapping[str, Any]) -> bool:
    """Whether a template writes a token between what a user says and the answer.

    True as well where that cannot be told, because the template fails: who asks must then be told the token.

    Args:
        template: Jinja2; it is run in the sandbox.
        token: Text of the token.
        named: Values of the tokenizer's files, of which the tokens are given to the template.
    """
    environment = sandbox()
    messages = [{"role": "user", "content": _QUESTION}, {"role": "assistant", "content": _ANSWER}]
    texts = {key: one.get("content") if isinstance(one, dict) else one for key, one in named.items()}
    tokens = {key: text for key, text in texts.items() if key.endswith("_token") and isinstance(text, str)}
    try:
        with environment.limited():
            if next(hidden_names(environment.parse(template)), None) is not None:
                return True
            made = environment.from_string(template)
            text = made.render(**tokens, messages=messages, tools=None, documents=None, add_generation_prompt=False)
    except Exception:  # whatever a template does, or a limit of the sandbox
        return True
    _, asked, after = text.partition(_QUESTION)
    between, answered, _ = after.partition(_ANSWER)
    if not asked or not answered:
        return True
    return token in between.replace(BEGIN, "").replace(END, "")
