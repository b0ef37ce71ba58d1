"""A text sample at the end of a run: the quickest look at what a model has learned."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from modlib.components import component
from modlib.inference.generation import check_sampling, sample_text

if TYPE_CHECKING:
    from modlib.data.text.tokenizer import TextTokenizer


@component("sample", "text", not_science=("prompt", "max_new_tokens", "temperature", "top_k"))
class TextSample:
    """Continue a prompt; the same text for the same weights.

    Args:
        prompt: Text to continue; empty starts a document.
        max_new_tokens: Most tokens to add.
        temperature: 0 takes the most likely token each time.
        top_k: Sample among this many most likely tokens; None among all.

    Raises:
        ConfigError: A number out of its range.
    """

    def __init__(
        self, *, prompt: str = "", max_new_tokens: int = 128, temperature: float = 0.8, top_k: int | None = 50
    ) -> None:
        check_sampling(max_new_tokens, temperature, top_k)
        self.prompt = prompt
        self.max_new_tokens, self.temperature, self.top_k = max_new_tokens, temperature, top_k

    def __call__(self, model: Any, tokenizer: TextTokenizer) -> str:
        """Prompt and continuation.

        Args:
            model: The trained model; every rank calls it when it is sharded.
            tokenizer: The training data's.
        """
        return sample_text(
            model,
            tokenizer,
            self.prompt,
            max_new_tokens=self.max_new_tokens,
            temperature=self.temperature,
            top_k=self.top_k,
        )
