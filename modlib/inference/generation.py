"""Text from a model: sampling, a static key/value cache, and windows that slide."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from modlib.models.gpt2 import KeyValueCache
from modlib.runtime.errors import ConfigError

if TYPE_CHECKING:
    from modlib.data.text.tokenizer import TextTokenizer

END_OF_TEXT = "<|endoftext|>"
COLDEST = 1e-6  # below it the most likely token is certain in float32, and dividing by it could overflow


def next_tokens(
    logits: Tensor,
    *,
    temperature: float,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Choose one token per row.

    Args:
        logits: (B, V).
        temperature: 0 takes the most likely token; 1 samples from the model's distribution.
        top_k: Sample among this many most likely tokens.
        top_p: Sample among the fewest most likely tokens whose probabilities reach top_p together; at least one.
        generator: Source of randomness, on the device of the logits.

    Returns:
        (B, 1) int64.

    Source: Holtzman et al. 2020, The Curious Case of Neural Text Degeneration, section 3.1 (top_p).
    """
    if temperature < COLDEST:
        return logits.argmax(dim=-1, keepdim=True)
    logits = logits.float() / temperature
    if top_k is not None and top_k < logits.shape[-1]:
        smallest = logits.topk(top_k).values[:, -1:]
        logits = logits.masked_fill(logits < smallest, float("-inf"))
    probabilities = logits.softmax(dim=-1)
    if top_p is not None and top_p < 1:
        ordered, order = probabilities.sort(dim=-1, descending=True, stable=True)
        likelier = ordered.cumsum(dim=-1) - ordered  # probability of everything before each token
        probabilities = probabilities.masked_fill((likelier >= top_p).gather(-1, order.argsort(dim=-1)), 0.0)
    return torch.multinomial(probabilities, 1, generator=generator)


def check_sampling(
    max_new_tokens: int, temperature: float, top_k: int | None, top_p: float | None = None, tokens: Tensor | None = None
) -> None:
    """Refuse settings of `generate` that are out of range, all of them together.

    Raises:
        ConfigError: At least one is.
    """
    problems = []
    if tokens is not None and (tokens.ndim != 2 or tokens.shape[1] < 1):
        problems.append(
            f"prompt {tuple(tokens.shape)} must be (batch, tokens) with at least 1 token; use {END_OF_TEXT}"
        )
    if max_new_tokens < 0:
        problems.append(f"max_new_tokens ({max_new_tokens}) must be at least 0")
    if not temperature >= 0:
        problems.append(f"temperature ({temperature}) must be at least 0; 0 is greedy")
    if top_k is not None and top_k < 1:
        problems.append(f"top_k ({top_k}) must be at least 1; None takes all tokens")
    if top_p is not None and not 0 < top_p <= 1:
        problems.append(f"top_p ({top_p}) must be in (0, 1]; None takes all tokens")
    if problems:
        raise ConfigError(problems)


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode without compiled code, and afterwards every module in the mode it was in."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        if any(getattr(module, "_compiled_call_impl", None) is not None for module, _ in modes):
            with torch.compiler.set_stance("force_eager"):  # every length would be compiled anew
                yield
        else:
            yield
    finally:
        for module, training in modes:
            module.training = training


def _is_sharded(model: nn.Module) -> bool:
    """Whether FSDP or another sharding holds the parameters; also between a forward pass and the next reshard."""
    if any(hasattr(parameter, "device_mesh") for parameter in model.parameters()):
        return True
    if not dist.is_initialized():
        return False
    from torch.distributed.fsdp import FSDPModule  # costs a second, which a single process need not pay

    return isinstance(model, FSDPModule)


@torch.no_grad()
def generate(
    model: Any,
    tokens: Tensor,
    max_new_tokens: int,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
    generator: torch.Generator | None = None,
    stop_tokens: Sequence[int] = (),
    vocab_size: int | None = None,
    use_cache: bool = True,
) -> Tensor:
    """Continue every row of tokens.

    The model sees the last seq_len tokens, so prompt and continuation may be longer than its window; once the window
    slides, each token costs a full forward pass, because all positions shift. The global random state is not touched.

    A model sharded by FSDP works when every rank calls this with the same arguments; it runs without the cache, and
    rank 0 chooses the tokens.

    Args:
        model: Called with (B, T) tokens, gives logits (B, T, V); has seq_len. One with GPT2's `decode` uses the cache.
        tokens: (B, T) int64, T at least 1; rows of equal length.
        max_new_tokens: Tokens to add.
        temperature: 0 is greedy.
        top_k: Sample among the top_k most likely tokens.
        top_p: Sample among the most likely tokens that together have probability top_p.
        seed: Of the samples, when no generator is given.
        generator: Source of randomness on the model's device; advanced.
        stop_tokens: A row ends with any of them and is filled up with the first; generation ends when every row has
            ended.
        vocab_size: Only ids below it are chosen, for models whose vocabulary was padded beyond the tokenizer's.
        use_cache: False recomputes the whole window for every token.

    Returns:
        (B, T + n) with n at most max_new_tokens.

    Raises:
        ConfigError: An argument out of its range.
    """
    check_sampling(max_new_tokens, temperature, top_k, top_p, tokens)
    parameter = next(model.parameters())
    is_sharded = _is_sharded(model)
    batch_size, prompt_length = tokens.shape
    end = prompt_length + max_new_tokens
    result = torch.empty(batch_size, end, dtype=torch.int64, device=parameter.device)
    result[:, :prompt_length] = tokens
    if generator is None:
        generator = torch.Generator(parameter.device).manual_seed(seed)
    cache = None
    if use_cache and not is_sharded and hasattr(model, "decode"):
        cache = KeyValueCache(model, batch_size=batch_size, capacity=min(end, model.seq_len))
    stopped = torch.zeros(batch_size, 1, dtype=torch.bool, device=parameter.device)
    with _evaluating(model):
        for position in range(prompt_length, end):
            logits = _last_logits(model, result[:, :position], cache)[:, :vocab_size]
            chosen = next_tokens(logits, temperature=temperature, top_k=top_k, top_p=top_p, generator=generator)
            if is_sharded and dist.is_initialized():
                dist.broadcast(chosen, src=0)  # one choice for all, or a rounding difference would part the ranks
            if stop_tokens:
                chosen = chosen.masked_fill(stopped, stop_tokens[0])
                for token in stop_tokens:
                    stopped |= chosen == token
            result[:, position : position + 1] = chosen
            if stop_tokens and bool(stopped.all()):
                return result[:, : position + 1]
    return result


def _last_logits(model: Any, tokens: Tensor, cache: KeyValueCache | None) -> Tensor:
    """Logits (B, V) of the token that follows."""
    window = tokens[:, -model.seq_len :]
    if cache is None:
        return model(window)[:, -1]
    if cache.length == 0 or tokens.shape[1] > model.seq_len:
        cache.length = 0  # the window slid: every cached key has another position now
        return model.decode(window, cache)
    return model.decode(window[:, cache.length :], cache)


def sample_text(
    model: Any,
    tokenizer: TextTokenizer,
    prompt: str,
    *,
    max_new_tokens: int = 100,
    temperature: float = 0.8,
    top_k: int | None = 50,
    top_p: float | None = None,
    seed: int = 0,
    end_of_document: int | None = None,
    stop_token: int | None = None,
    use_cache: bool = True,
) -> str:
    """Prompt and continuation as text, up to the end of the document if the model ends it.

    Args:
        model: As for generate; a sharded one needs every rank to call.
        tokenizer: Turns text into ids and back. An empty prompt is its end-of-text token, which starts a document.
            Where the training data has a token before every text (`documents_begin`), the prompt gets it as well.
        prompt: Text to continue.
        max_new_tokens: Most tokens to add.
        temperature: 0 is greedy.
        top_k: Sample among the top_k most likely tokens.
        top_p: Sample among the most likely tokens that together have probability top_p.
        seed: Of the samples.
        end_of_document: The token that ends each document of the training data; None is the tokenizer's, if any.
        stop_token: Ends the text as well, and is no part of it.
        use_cache: As for generate.

    Raises:
        ConfigError: An argument out of its range, or an empty prompt with a tokenizer without end-of-text token.
    """
    from modlib.data.text.boundary_tokens import chosen_end

    end_of_document = chosen_end(tokenizer) if end_of_document is None else end_of_document
    stop_tokens = [token for token in (end_of_document, stop_token) if token is not None]
    ids = tokenizer.encode(prompt, special_tokens=True)  # a prompt may hold the marks of a conversation
    if tokenizer.documents_begin is not None:
        ids = [tokenizer.documents_begin, *ids]
    elif not ids and end_of_document is not None:
        ids = [end_of_document]
    device = next(model.parameters()).device
    tokens = generate(
        model,
        torch.tensor([ids], dtype=torch.int64, device=device),
        max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
        stop_tokens=stop_tokens,
        vocab_size=tokenizer.vocab_size,
        use_cache=use_cache,
    )
    continuation = tokens[0, len(ids) :].tolist()
    if continuation and continuation[-1] in stop_tokens:
        continuation.pop()
    return prompt + tokenizer.decode(continuation, skip_special_tokens=True)
