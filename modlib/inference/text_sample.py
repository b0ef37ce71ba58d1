"""A text sample at the end of a run: the quickest look at what a model has learned."""

from __future__ import annotations

from typing import Any

from modlib.components import component
from modlib.inference.generation import Tokenizer, sample_text


@component(
    "sample",
    "text",
    runtime_args=("model", "tokenizer"),
    not_science=("prompt", "max_new_tokens", "temperature", "top_k"),
)
def TextSample(
    model: Any,
    tokenizer: Tokenizer,
    *,
    prompt: str = "",
    max_new_tokens: int = 128,
    temperature: float = 0.8,
    top_k: int | None = 50,
) -> str:
    """Continue a prompt; the same text for the same weights.

    Args:
        model: The trained model; every rank calls it when it is sharded.
        tokenizer: The training data's.
        prompt: Text to continue; empty starts a document.
        max_new_tokens: Most tokens to add.
        temperature: 0 takes the most likely token each time.
        top_k: Sample among this many most likely tokens; None among all.
    """
    return sample_text(model, tokenizer, prompt, max_new_tokens=max_new_tokens, temperature=temperature, top_k=top_k)
