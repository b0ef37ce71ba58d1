"""Secrets are recognised by name and by look, and replaced wherever they stand."""

from __future__ import annotations

import pytest

from modlib.config.secrets import text_without_secrets, without_secrets

KEY = "hf_" + "a1B2c3D4" * 4


@pytest.mark.parametrize(
    ("name", "value", "safe"),
    [
        ("Service.api_key", "abc", "***"),
        ("Service.hf_token", ["abc", "", None], ["***", "", None]),
        ("Service.headers", {"api_key": "abc", "name": "abc"}, {"api_key": "***", "name": "abc"}),
        ("Service.name", f"before {KEY} after", "before *** after"),
        ("Service.names", ("a", KEY), ("a", "***")),
        ("Sampler.num_tokens", 12, 12),
        ("Tokenizer.eos_token", "<eos>", "<eos>"),
        ("x.secret", 5, 5),
    ],
)
def test_a_value(name: str, value: object, safe: object) -> None:
    assert without_secrets(name, value) == safe


def test_a_text_keeps_all_else() -> None:
    text = (
        "Service:\n"
        "    api_key = 'it\\'s = one'\n"
        '    password = "two"  # kept\n'
        f"    note = 'see {KEY}'\n"
        "    eos_token = '<eos>'\n"
        "    # secret = 'three' (default)\n"
    )
    assert text_without_secrets(text) == (
        "Service:\n"
        "    api_key = '***'\n"
        "    password = '***'  # kept\n"
        "    note = 'see ***'\n"
        "    eos_token = '<eos>'\n"
        "    # secret = '***' (default)\n"
    )


def test_the_value_of_a_secret_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_PASSWORD", "long-enough")
    assert without_secrets("Service.note", "it is long-enough") == "it is ***"
    assert text_without_secrets("note = 'long-enough'\n") == "note = '***'\n"
