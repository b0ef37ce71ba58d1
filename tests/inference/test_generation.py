"""Sampling, the cache, windows that slide, and what generation must leave alone."""

from __future__ import annotations

import copy
import math
import tempfile
from typing import Any

import pytest
import tokenizers
import torch
import torch.distributed as dist
from tokenizers import AddedToken, decoders, models, pre_tokenizers, processors
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh

from modlib.data.text.tokenizer import Tokenizer
from modlib.distributed.fsdp import shard
from modlib.inference.generation import generate, next_tokens, sample_text
from modlib.models.gpt2 import GPT2
from modlib.models.initialization import ComposedInitializer
from modlib.runtime.errors import ConfigError
from tests.workers import run_ranks

VOCAB, SEQ_LEN = 61, 12
VARIANTS: list[dict[str, Any]] = [
    {},
    {"position": "rotary", "num_kv_heads": 2, "norm": nn.RMSNorm, "activation": "swiglu", "bias": False},
    {"position": "none", "num_kv_heads": 1, "tie_embeddings": False},
]


def small(**changes: Any) -> GPT2:
    model = GPT2(**{"vocab_size": VOCAB, "seq_len": SEQ_LEN, "num_layers": 2, "num_heads": 4, "dim": 32, **changes})
    ComposedInitializer(std=0.3)(model, 1)  # far enough from uniform that rounding does not choose
    return model


def prompt(length: int, rows: int = 1) -> Tensor:
    return torch.randint(VOCAB, (rows, length), generator=torch.Generator().manual_seed(length))


class Counting(nn.Module):
    """Says that each token is followed by the next number, and remembers what it saw."""

    def __init__(self, size: int = 10, seq_len: int = 4) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.size, self.seq_len = size, seq_len
        self.seen: list[list[int]] = []

    def forward(self, tokens: Tensor) -> Tensor:
        self.seen.append(tokens[0].tolist())
        return nn.functional.one_hot((tokens + 1) % self.size, self.size) * 50.0 + self.weight


# ------------------------------------------------------------------------------------------------- the cache


@pytest.mark.parametrize("changes", VARIANTS)
@pytest.mark.parametrize(("length", "count"), [(1, 11), (5, 7), (12, 1), (4, 20), (20, 6)])
def test_the_cache_changes_no_token(changes: dict[str, Any], length: int, count: int) -> None:
    model, tokens = small(**changes), prompt(length, rows=2)
    for sampling in ({"temperature": 0.0}, {"temperature": 1.0, "top_k": 20, "seed": 3}):
        cached = generate(model, tokens, count, **sampling)
        assert cached.shape == (2, length + count)
        assert torch.equal(cached, generate(model, tokens, count, use_cache=False, **sampling))


def test_greedy_equals_the_plain_loop_over_a_sliding_window() -> None:
    model, tokens = small().eval(), prompt(3, rows=2)
    expected = tokens
    for _ in range(25):
        with torch.no_grad():
            last = model(expected[:, -SEQ_LEN:])[:, -1]
        expected = torch.cat((expected, last.argmax(-1, keepdim=True)), 1)
    assert torch.equal(generate(model, tokens, 25, temperature=0), expected)


def test_the_cache_follows_autocast() -> None:
    model, tokens = small(), prompt(4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(
            generate(model, tokens, 20, temperature=0), generate(model, tokens, 20, temperature=0, use_cache=False)
        )


def test_a_batch_is_its_rows() -> None:
    model, tokens = small(), prompt(4, rows=3)
    together = generate(model, tokens, 15, temperature=0)
    for row in range(3):
        assert torch.equal(together[row : row + 1], generate(model, tokens[row : row + 1], 15, temperature=0))


def test_the_window_never_holds_more_than_seq_len_tokens() -> None:
    model = Counting()
    assert generate(model, torch.tensor([[7, 8]]), 5, temperature=0).tolist() == [[7, 8, 9, 0, 1, 2, 3]]
    assert model.seen == [[7, 8], [7, 8, 9], [7, 8, 9, 0], [8, 9, 0, 1], [9, 0, 1, 2]]


# -------------------------------------------------------------------------------------------------- sampling


def shares(logits: list[float], **arguments: Any) -> Tensor:
    """How often each token is chosen, of 20,000 draws."""
    rows = torch.tensor([logits]).expand(20_000, -1)
    generator = torch.Generator().manual_seed(0)
    chosen = next_tokens(rows, **{"temperature": 1.0, "generator": generator, **arguments})
    assert chosen.shape == (20_000, 1)
    return torch.bincount(chosen.flatten(), minlength=len(logits)) / 20_000


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_temperature(temperature: float) -> None:
    logits = [0.0, 2.0, 1.0, -1.0]
    expected = (torch.tensor(logits) / temperature).softmax(-1)
    torch.testing.assert_close(shares(logits, temperature=temperature), expected, rtol=0, atol=0.015)


@pytest.mark.parametrize("temperature", [0.0, 1e-320, 1e-40, 1e-7, 1e-4])
def test_no_or_hardly_any_temperature_takes_the_most_likely(temperature: float) -> None:
    assert shares([0.0, 2.0, 1.0, -60.0], temperature=temperature).tolist() == [0, 1, 0, 0]


@pytest.mark.parametrize("top_k", [1, 2, 3, 4, 100])
def test_top_k(top_k: int) -> None:
    logits = torch.tensor([0.0, 2.0, 1.0, -1.0])
    kept = logits.argsort(descending=True)[:top_k]
    expected = torch.zeros(4).scatter(0, kept, logits[kept].softmax(-1))
    found = shares(logits.tolist(), top_k=top_k)
    assert found.nonzero().flatten().tolist() == sorted(kept.tolist())
    torch.testing.assert_close(found, expected, rtol=0, atol=0.015)


@pytest.mark.parametrize(
    ("top_p", "kept"),
    [
        (1e-9, [1]),
        (0.49, [1]),
        (0.51, [1, 2]),
        (0.79, [1, 2]),
        (0.81, [0, 1, 2]),
        (0.96, [0, 1, 2, 3]),
        (1.0, [0, 1, 2, 3]),
    ],
)
def test_top_p_keeps_the_fewest_tokens_that_reach_it(top_p: float, kept: list[int]) -> None:
    probabilities = torch.tensor([0.15, 0.5, 0.3, 0.05])
    found = shares(probabilities.log().tolist(), top_p=top_p)
    assert found.nonzero().flatten().tolist() == kept
    expected = torch.zeros(4).scatter(0, torch.tensor(kept), probabilities[kept] / probabilities[kept].sum())
    torch.testing.assert_close(found, expected, rtol=0, atol=0.015)


def test_top_k_comes_before_top_p() -> None:
    """Of 0.5, 0.3 (top 2) the first has 5/8 of what is left, so top_p = 0.6 keeps it alone."""
    logits = torch.tensor([0.15, 0.5, 0.3, 0.05]).log().tolist()
    assert shares(logits, top_k=2, top_p=0.6).nonzero().flatten().tolist() == [1]
    assert shares(logits, top_p=0.6).nonzero().flatten().tolist() == [1, 2]


def test_bfloat16_logits_are_sampled_in_float32() -> None:
    rows = torch.tensor([[0.0, 1.0]]).bfloat16().expand(20_000, -1)
    chosen = next_tokens(rows, temperature=1.0, generator=torch.Generator().manual_seed(0))
    assert chosen.float().mean().item() == pytest.approx(1 / (1 + math.exp(-1)), abs=0.015)


def test_ids_beyond_the_tokenizers_are_never_chosen() -> None:
    tokens = generate(small(), prompt(3, rows=8), 40, temperature=5.0, vocab_size=7)[:, 3:]
    assert tokens.max() == 6


# ------------------------------------------------------------------------------------------------- stopping


def test_rows_stop_one_by_one_and_are_filled_up() -> None:
    tokens = torch.tensor([[1, 2], [1, 6], [0, 1]])  # the stop token in a prompt stops nothing
    found = generate(Counting(), tokens, 20, temperature=0, stop_tokens=[8])
    assert found.tolist() == [
        [1, 2, 3, 4, 5, 6, 7, 8, 8],
        [1, 6, 7, 8, 8, 8, 8, 8, 8],
        [0, 1, 2, 3, 4, 5, 6, 7, 8],
    ]
    assert generate(Counting(), tokens, 20, temperature=0, stop_tokens=[8, 5]).tolist() == [
        [1, 2, 3, 4, 5, 8],
        [1, 6, 7, 8, 8, 8],
        [0, 1, 2, 3, 4, 5],
    ]
    assert generate(Counting(), torch.tensor([[8]]), 3, temperature=0, stop_tokens=[8]).tolist() == [[8, 9, 0, 1]]


def test_nothing_new_returns_the_prompt() -> None:
    tokens = prompt(5)
    assert torch.equal(generate(small(), tokens, 0), tokens)


# ---------------------------------------------------------------------------------------- what is left alone


def test_the_model_is_in_eval_mode_meanwhile_and_as_before_afterwards() -> None:
    model = small(dropout=0.5)
    model.blocks[0].eval()
    modes = [module.training for module in model.modules()]
    first = generate(model, prompt(3), 8, temperature=0)
    assert [module.training for module in model.modules()] == modes
    assert True in modes
    assert False in modes
    assert torch.equal(generate(copy.deepcopy(model).eval(), prompt(3), 8, temperature=0), first)
    with pytest.raises(IndexError):
        generate(model, torch.tensor([[VOCAB + 5]]), 8)
    assert [module.training for module in model.modules()] == modes


def test_the_seed_decides_and_the_global_random_state_is_not_touched() -> None:
    model = small()
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = generate(model, prompt(3), 20, seed=5)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(99)
    assert torch.equal(generate(model, prompt(3), 20, seed=5), first)
    assert not torch.equal(generate(model, prompt(3), 20, seed=6), first)


def test_a_given_generator_is_advanced() -> None:
    model, generator = small(), torch.Generator().manual_seed(5)
    first = generate(model, prompt(3), 20, generator=generator)
    assert torch.equal(first, generate(model, prompt(3), 20, seed=5))
    assert not torch.equal(first, generate(model, prompt(3), 20, generator=generator))


def test_no_graph_is_kept() -> None:
    model = small()
    assert not generate(model, prompt(3), 2).requires_grad
    assert all(parameter.grad is None for parameter in model.parameters())


def test_wrong_arguments_are_refused_together() -> None:
    with pytest.raises(ConfigError) as caught:
        generate(small(), prompt(0), -1, temperature=-0.5, top_k=0, top_p=1.5)
    assert caught.value.problems == [
        "prompt (1, 0) must be (batch, tokens) with at least 1 token; use <|endoftext|>",
        "max_new_tokens (-1) must be at least 0",
        "temperature (-0.5) must be at least 0; 0 is greedy",
        "top_k (0) must be at least 1; None takes all tokens",
        "top_p (1.5) must be in (0, 1]; None takes all tokens",
    ]
    with pytest.raises(ConfigError, match=r"temperature \(nan\) must be at least 0; 0 is greedy"):
        generate(small(), prompt(1), 1, temperature=math.nan)


# ----------------------------------------------------------------------------------------------------- ranks


def texts_on_ranks(changes: dict[str, Any]) -> list[list[list[int]]]:
    """Greedy and sampled tokens; then again, after a forward pass that leaves the root's parameters gathered."""
    if not dist.is_initialized():
        model: Any = small(**changes)
    else:
        with torch.device("meta"):
            model = GPT2(vocab_size=VOCAB, seq_len=SEQ_LEN, num_layers=2, num_heads=4, dim=32, **changes)
        shard(model, init_device_mesh("cpu", (dist.get_world_size(),)), "float32")
        model.to_empty(device="cpu")
        ComposedInitializer(std=0.3)(model, 1)
    found = []
    for _ in range(2):
        found.append(generate(model, prompt(3, rows=2), 15, temperature=0).tolist())
        found.append(generate(model, prompt(3, rows=2), 15, temperature=0.9, top_k=30, top_p=0.95, seed=4).tolist())
        found.append(generate(model, prompt(3), 15, temperature=1.0, stop_tokens=[found[0][0][8]]).tolist())
        with torch.no_grad():
            model.eval()(prompt(5))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("changes", VARIANTS[:2])
def test_sharded_models_write_what_one_process_writes(changes: dict[str, Any]) -> None:
    expected = texts_on_ranks(changes)
    assert expected[:3] == expected[3:]
    assert run_ranks(2, texts_on_ranks, changes) == [expected, expected]


# ------------------------------------------------------------------------------------------------------ text


def byte_tokenizer(*special: str, post_processor: Any = None) -> Tokenizer:
    """One token per byte, and special ones after them."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token) for token in special])
    if post_processor is not None:
        tokenizer.post_processor = post_processor
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save(f"{folder}/tokenizer.json")
        return Tokenizer(folder)


class Reciting(nn.Module):
    """Writes a text and then a last token, whatever it is given; remembers what it was given first."""

    seq_len = 1000

    def __init__(self, tokenizer: Tokenizer, text: str, last: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.ids = [*tokenizer.encode(text), last]
        self.given: list[int] = []

    def forward(self, tokens: Tensor) -> Tensor:
        self.given = self.given or tokens[0].tolist()
        following = self.ids[tokens.shape[1] - len(self.given)]
        return nn.functional.one_hot(torch.tensor(following), 300).expand(1, tokens.shape[1], -1) * 50.0


def test_text_is_the_prompt_and_its_continuation_up_to_the_documents_end() -> None:
    tokenizer = byte_tokenizer("<|endoftext|>")
    model = Reciting(tokenizer, "né ✓\n", last=256)
    assert sample_text(model, tokenizer, "a  b ", max_new_tokens=100) == "a  b né ✓\n"
    assert model.given == tokenizer.encode("a  b ")
    assert sample_text(Reciting(tokenizer, "xyz", last=256), tokenizer, "a", max_new_tokens=2) == "axy"


@pytest.mark.parametrize("end", ["<|endoftext|>", "</s>", "<eos>"])
def test_an_empty_prompt_starts_a_document(end: str) -> None:
    tokenizer = byte_tokenizer("<pad>", end)
    model = Reciting(tokenizer, "import os", last=257)
    assert sample_text(model, tokenizer, "") == "import os"
    assert model.given == [257]


def test_a_prompt_begins_as_the_texts_of_the_training_data() -> None:
    tokenizer = byte_tokenizer("<s>", "</s>")
    tokenizer.documents_begin, tokenizer.documents_end = 256, 257
    for prompt in ("", "ab"):
        model = Reciting(tokenizer, "yes", last=257)
        assert sample_text(model, tokenizer, prompt) == prompt + "yes"
        assert model.given == [256, *tokenizer.encode(prompt)]


def test_an_empty_prompt_needs_a_token_that_starts_a_document() -> None:
    with pytest.raises(ConfigError, match=r"prompt \(1, 0\) must be \(batch, tokens\) with at least 1 token"):
        sample_text(small(), byte_tokenizer("<pad>"), "")


def test_the_prompt_is_encoded_as_the_training_data_was() -> None:
    """A tokenizer.json may ask for a token before each text; packing does not add it."""
    ends = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 256), ("</s>", 257)])
    tokenizer = byte_tokenizer("<s>", "</s>", post_processor=ends)
    model = Reciting(byte_tokenizer(), "yes", last=257)
    assert sample_text(model, tokenizer, "ab") == "abyes"
    assert model.given == byte_tokenizer().encode("ab")


def test_special_tokens_of_a_prompt_are_read_and_none_are_written() -> None:
    """As a conversation needs it."""
    tokenizer = byte_tokenizer("<|turn|>", "</s>")
    model = Reciting(tokenizer, "no", last=257)
    model.ids.insert(1, 256)
    assert sample_text(model, tokenizer, "a<|turn|>b") == "a<|turn|>bno"
    assert model.given == [*tokenizer.encode("a"), 256, *tokenizer.encode("b")]
