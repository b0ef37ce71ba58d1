"""The sample at the end of a run."""

from __future__ import annotations

import pytest

from modlib.inference.generation import sample_text
from modlib.inference.text_sample import TextSample
from modlib.runtime.errors import ConfigError
from tests.inference.test_generation import byte_tokenizer, small


def test_is_sample_text_with_the_runs_settings() -> None:
    model, tokenizer = small(vocab_size=257), byte_tokenizer("<|endoftext|>")
    sample = TextSample(prompt="def ", max_new_tokens=9, temperature=0.7, top_k=40)
    text = sample(model, tokenizer)
    assert text == sample_text(model, tokenizer, "def ", max_new_tokens=9, temperature=0.7, top_k=40, seed=0)
    assert text.startswith("def ")
    assert text == sample(model, tokenizer)
    assert TextSample(max_new_tokens=9, temperature=0)(model, tokenizer) == sample_text(
        model, tokenizer, "", max_new_tokens=9, temperature=0
    )


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"top_k \(0\) must be at least 1; None takes all tokens"):
        TextSample(top_k=0)
