"""The decoder: sizes, behaviour, and what it says about itself."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from modlib.models.gpt2 import GPT2, KeyValueCache
from modlib.models.initialization import ComposedInitializer
from modlib.nn.losses import CLMCrossEntropyLoss
from tests.models.live_memory import LiveMemory

LLAMA: dict[str, Any] = {
    "position": "rotary",
    "norm": nn.RMSNorm,
    "activation": "swiglu",
    "bias": False,
    "tie_embeddings": False,
    "num_kv_heads": 2,
}
VARIANTS: list[dict[str, Any]] = [
    {},
    LLAMA,
    {"position": "none", "num_kv_heads": 1, "activation": "relu"},
    {"position": "rotary", "rope_fraction": 0.5, "qk_norm": True, "activation": "gelu_tanh"},
]


def small(**changes: Any) -> GPT2:
    torch.manual_seed(0)
    return GPT2(**{"vocab_size": 61, "seq_len": 12, "num_layers": 2, "num_heads": 4, "dim": 32, **changes})


@pytest.mark.parametrize(
    ("num_layers", "num_heads", "dim", "total"),
    [
        (12, 12, 768, 124_439_808),
        (24, 16, 1024, 354_823_168),
        (36, 20, 1280, 774_030_080),
        (48, 25, 1600, 1_557_611_200),
    ],
)
def test_published_sizes(num_layers: int, num_heads: int, dim: int, total: int) -> None:
    with torch.device("meta"):
        model = GPT2(vocab_size=50257, seq_len=1024, num_layers=num_layers, num_heads=num_heads, dim=dim)
    counts = model.num_parameters()
    assert counts == {"total": total, "trainable": total, "non_embedding": total - (50257 + 1024) * dim}
    assert sum(count for _, count in model.parameter_table()) == total


def test_llama_7b_has_its_published_size() -> None:
    arguments = {**LLAMA, "num_kv_heads": None}
    with torch.device("meta"):
        model = GPT2(vocab_size=32000, seq_len=2048, num_layers=32, num_heads=32, dim=4096, **arguments)
    assert model.num_parameters()["total"] == 6_738_415_616


@pytest.mark.parametrize("changes", VARIANTS)
def test_logits_and_gradients(changes: dict[str, Any]) -> None:
    model = small(**changes)
    tokens = torch.randint(61, (3, 12))
    logits = model(tokens)
    assert logits.shape == (3, 12, 61)
    CLMCrossEntropyLoss()(logits, tokens.roll(-1)).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0 or name.endswith("qkv.bias"), name


@pytest.mark.parametrize("changes", VARIANTS)
def test_shorter_sequences_see_the_same_past(changes: dict[str, Any]) -> None:
    model = small(**changes)
    tokens = torch.randint(61, (2, 12))
    torch.testing.assert_close(model(tokens)[:, :5], model(tokens[:, :5]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("changes", VARIANTS)
def test_decoding_equals_forward(changes: dict[str, Any]) -> None:
    model = small(**changes).eval()
    tokens = torch.randint(61, (2, 12))
    with torch.no_grad():
        cache = KeyValueCache(model, batch_size=2, capacity=12)
        found = [model.decode(tokens[:, start:end], cache) for start, end in ((0, 5), (5, 6), (6, 9), (9, 12))]
        expected = model(tokens)[:, [4, 5, 8, 11]]
    torch.testing.assert_close(torch.stack(found, 1), expected, rtol=1e-5, atol=1e-6)


def test_positions_matter_unless_there_are_none() -> None:
    tokens = torch.tensor([[3, 4, 5, 6]])
    swapped = tokens[:, [1, 0, 2, 3]]
    for position, same in (("learned", False), ("rotary", False), ("none", True)):
        model = small(position=position, num_layers=1)
        last, last_swapped = model(tokens)[:, -1], model(swapped)[:, -1]
        assert torch.allclose(last, last_swapped, atol=1e-6) == same, position


def test_too_long_input_is_refused() -> None:
    text = (
        r"sequence length \(13\) must be at most GPT2.seq_len \(12\); "
        "shorten the input or build the model with a longer seq_len"
    )
    with pytest.raises(ValueError, match=text):
        small()(torch.zeros(1, 13, dtype=torch.int64))
    model = small()
    with pytest.raises(ValueError, match=text):
        model.decode(torch.zeros(1, 13, dtype=torch.int64), KeyValueCache(model, batch_size=1, capacity=12))


def test_dropout_in_training_only() -> None:
    model = small(dropout=0.3)
    tokens = torch.randint(61, (1, 12))
    assert not torch.equal(model(tokens), model(tokens))
    model.eval()
    assert torch.equal(model(tokens), model(tokens))


def test_tying_shares_one_parameter_also_after_meta() -> None:
    with torch.device("meta"):
        model = small()
    model.to_empty(device="cpu")
    ComposedInitializer()(model, seed=0)
    assert not any("lm_head" in name for name in model.state_dict())
    tokens = torch.tensor([[1, 2]])
    before = model(tokens)
    with torch.no_grad():
        model.token_embedding.weight[60] += 1  # not in the input: only the output projection can show it
    after = model(tokens)
    assert torch.equal(before[..., :60], after[..., :60])
    assert not torch.equal(before[..., 60], after[..., 60])


@pytest.mark.parametrize("changes", VARIANTS)
def test_meta_then_memory_equals_memory(changes: dict[str, Any]) -> None:
    with torch.device("meta"):
        late = small(**changes)
    late.to_empty(device="cpu")
    direct = small(**changes)
    for model in (late, direct):
        ComposedInitializer()(model, seed=3)
    tokens = torch.randint(61, (2, 12))
    assert torch.equal(late(tokens), direct(tokens))


def test_bias_false_leaves_no_bias() -> None:
    assert not [name for name, _ in small(bias=False).named_parameters() if "bias" in name]


def test_norm_is_used_everywhere() -> None:
    model = small(norm=partial(nn.RMSNorm, eps=0.125), qk_norm=True)
    norms = [module for module in model.modules() if isinstance(module, nn.RMSNorm)]
    assert len(norms) == 2 * 4 + 1
    assert {norm.eps for norm in norms} == {0.125}


def test_fsdp_units_are_the_blocks() -> None:
    model = small()
    assert model.fsdp_units() == list(model.blocks)


def test_parameter_table() -> None:
    assert small(tie_embeddings=False).parameter_table() == [
        ("token_embedding", 61 * 32),
        ("position_embedding", 12 * 32),
        ("2 x attention", 2 * (4 * 32 * 32 + 4 * 32)),
        ("2 x feed_forward", 2 * (8 * 32 * 32 + 5 * 32)),
        ("2 x norms", 2 * 4 * 32),
        ("final_norm", 2 * 32),
        ("lm_head", 61 * 32),
    ]


def test_flops_of_gpt2_124m() -> None:
    with torch.device("meta"):
        model = GPT2(vocab_size=50257, seq_len=1024, num_layers=12, num_heads=12, dim=768)
    assert model.flops_per_token() == 6 * (124_439_808 - 1024 * 768) + 12 * 12 * 768 * 1024
    assert model.flops_per_token(512) == 6 * (124_439_808 - 1024 * 768) + 12 * 12 * 768 * 512
    assert model.flops_per_token(convention="causal_half") == 6 * (124_439_808 - 1024 * 768) + 6 * 12 * 768 * 1024


def test_flops_count_what_is_multiplied() -> None:
    """Untied: the table that is only looked up does not count. Grouped keys: fewer weights, the same scores."""
    tied, untied = small(), small(tie_embeddings=False)
    assert tied.flops_per_token() == untied.flops_per_token()
    grouped = small(num_kv_heads=1)
    dropped = tied.num_parameters()["total"] - grouped.num_parameters()["total"]
    assert dropped > 0
    assert tied.flops_per_token() - grouped.flops_per_token() == 6 * dropped


@pytest.mark.parametrize("changes", VARIANTS)
def test_flops_against_counted_operations(changes: dict[str, Any]) -> None:
    """torch counts matrix products, and of attention all scores; ours adds the few parameters of norms and biases.

    Attention is written out for the count: the fused kernel's backward computes the scores a second time.
    """
    model = small(**{"vocab_size": 512, "seq_len": 64, "dim": 64, **changes})
    tokens = torch.randint(512, (2, 64))
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        CLMCrossEntropyLoss()(model(tokens), tokens).backward()
    assert counter.get_total_flops() / tokens.numel() == pytest.approx(model.flops_per_token(), rel=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("vocab_size", [pytest.param(64, marks=pytest.mark.slow), 3000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("changes", [{}, LLAMA, {"dropout": 0.1}, {**LLAMA, "dropout": 0.1}])
def test_activation_bytes_against_measured_peak(vocab_size: int, dtype: torch.dtype, changes: dict[str, Any]) -> None:
    arguments = {"vocab_size": vocab_size, "seq_len": 128, "num_layers": 4, "dim": 128, **changes}
    model = small(**arguments).to(dtype)
    tokens = torch.randint(vocab_size, (2, 128))
    CLMCrossEntropyLoss()(model(tokens), tokens).backward()
    model.zero_grad()
    with LiveMemory(tokens, *model.parameters(), *model.buffers()) as memory:
        CLMCrossEntropyLoss()(model(tokens), tokens).backward()
    estimate = model.activation_bytes(2, bytes_per_value=dtype.itemsize)
    if model.dropout:  # on a CPU attention then keeps its scores, which grow with the square of the length
        if torch.cuda.is_available():
            pytest.skip("the estimate is of the GPU, which keeps none")
        assert estimate < model.activation_bytes(1, 256, dtype.itemsize)
    else:
        assert estimate == model.activation_bytes(1, 256, dtype.itemsize)
    assert 0.95 < memory.peak / estimate < 1.4


@pytest.mark.slow
@pytest.mark.parametrize("changes", VARIANTS)
def test_compiled_blocks_give_the_same_numbers_without_graph_breaks(changes: dict[str, Any]) -> None:
    model, compiled = small(**changes), small(**changes)
    compiled.load_state_dict(model.state_dict())
    for block in compiled.blocks:
        block.compile(fullgraph=True, dynamic=False)
    tokens = torch.randint(61, (2, 12))
    torch.testing.assert_close(compiled(tokens), model(tokens), rtol=1e-4, atol=1e-5)
    assert list(compiled.state_dict()) == list(model.state_dict())
