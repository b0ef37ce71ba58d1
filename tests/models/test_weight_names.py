"""The same weights give transformers' logits, in both directions."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from modlib.models.gpt2 import GPT2, Block
from modlib.models.imported_arguments import arguments_from_transformers
from modlib.models.lora import LoRAModel
from modlib.models.plain_types import plain_type, unwrapped
from modlib.models.weight_names import (
    architecture_of,
    from_transformers,
    to_transformers,
)
from modlib.runtime.errors import CheckpointError, ConfigError

transformers = pytest.importorskip("transformers")
TOKENS = {"bos_token_id": 1, "eos_token_id": 2}


def gpt2(**changes: Any) -> Any:
    sizes = {"vocab_size": 211, "n_positions": 48, "n_embd": 48, "n_layer": 3, "n_head": 4, **TOKENS, **changes}
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes))


def llama(**changes: Any) -> Any:
    sizes = {
        "vocab_size": 211,
        "hidden_size": 64,
        "intermediate_size": 112,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "max_position_embeddings": 96,
        **TOKENS,
        **changes,
    }
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes))


def with_varied_weights(theirs: Any) -> Any:
    """Weights large enough, and biases and norms uneven enough, that a wrong place would show."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            is_norm = "norm" in name or "ln_" in name
            parameter.copy_(1 + 0.2 * noise if is_norm and name.endswith("weight") else 0.1 * noise)
    return theirs.eval()


ORACLES = [
    (gpt2, {}),
    (gpt2, {"tie_word_embeddings": False, "activation_function": "gelu", "n_inner": 80}),
    (gpt2, {"layer_norm_epsilon": 1e-3, "activation_function": "relu"}),
    (llama, {}),
    (llama, {"num_key_value_heads": 1, "tie_word_embeddings": True, "rms_norm_eps": 1e-3}),
    (llama, {"num_key_value_heads": 2, "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}}),
]


@pytest.mark.parametrize(("build", "changes"), ORACLES)
def test_logits_equal_transformers(build: Any, changes: dict[str, Any]) -> None:
    theirs = with_varied_weights(build(**changes))
    ours = GPT2(**arguments_from_transformers(theirs.config.to_dict())).eval()
    ours.load_state_dict(from_transformers(theirs.state_dict(), ours))
    assert ours.num_parameters()["total"] == sum(parameter.numel() for parameter in theirs.parameters())
    tokens = torch.randint(211, (3, ours.seq_len))
    with torch.no_grad():
        expected, found = theirs(tokens).logits, ours(tokens)
    assert expected.std() > 0.2
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("build", "changes"), [ORACLES[0], ORACLES[5]])
def test_gradients_equal_transformers(build: Any, changes: dict[str, Any]) -> None:
    theirs = with_varied_weights(build(**changes))
    ours = GPT2(**arguments_from_transformers(theirs.config.to_dict())).eval()
    ours.load_state_dict(from_transformers(theirs.state_dict(), ours))
    tokens = torch.randint(211, (2, 20))
    for model in (theirs, ours):
        logits = model(tokens) if model is ours else model(tokens).logits
        torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()).backward()
    gradients = {name: parameter.grad for name, parameter in ours.named_parameters() if parameter.grad is not None}
    expected = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    found = to_transformers(gradients, ours)
    assert set(found) == set(expected)
    for name, gradient in found.items():
        torch.testing.assert_close(
            gradient, expected[name], rtol=1e-4, atol=1e-6, msg=lambda text, n=name: f"{n}: {text}"
        )


@pytest.mark.parametrize(("build", "changes"), ORACLES)
def test_back_to_transformers(build: Any, changes: dict[str, Any]) -> None:
    theirs = build(**changes)
    with torch.device("meta"):
        ours = GPT2(**arguments_from_transformers(theirs.config.to_dict()))
    state = theirs.state_dict()
    back = to_transformers(from_transformers(state, ours), ours)
    assert set(state) - set(back) == ({"lm_head.weight"} if ours.tie_embeddings else set())
    for name, tensor in back.items():
        assert torch.equal(tensor, state[name]), name
        assert tensor.is_contiguous()


def test_greedy_text_equals_transformers() -> None:
    from modlib.inference.generation import generate

    theirs = with_varied_weights(gpt2())
    ours = GPT2(**arguments_from_transformers(theirs.config.to_dict()))
    ours.load_state_dict(from_transformers(theirs.state_dict(), ours))
    prompt = torch.randint(3, 211, (1, 6))
    expected = theirs.generate(prompt, max_new_tokens=30, do_sample=False, eos_token_id=None, pad_token_id=0)
    assert torch.equal(generate(ours, prompt, 30, temperature=0), expected)


def test_published_gpt2_files_are_read() -> None:
    """The files on the hub leave out the prefix and the tied head, and hold mask buffers."""
    theirs = gpt2()
    state = {
        name.removeprefix("transformer."): t for name, t in theirs.state_dict().items() if name != "lm_head.weight"
    }
    state["h.0.attn.bias"] = torch.ones(1, 1, 48, 48)
    ours = GPT2(**arguments_from_transformers(theirs.config.to_dict()))
    ours.load_state_dict(from_transformers(state, ours))
    assert torch.equal(ours.token_embedding.weight, theirs.transformer.wte.weight)


def test_what_does_not_fit_is_named() -> None:
    state = dict(llama().state_dict())
    ours = GPT2(**arguments_from_transformers(llama().config.to_dict()))
    state["model.norm.weight"] = torch.zeros(7)
    state["extra"] = torch.zeros(1)
    del state["model.layers.1.self_attn.k_proj.weight"]
    with pytest.raises(CheckpointError) as caught:
        from_transformers(state, ours)
    assert str(caught.value).splitlines() == [
        "transformers checkpoint does not fit the model:",
        "  model.norm.weight gives (7,), final_norm.weight is (64,)",
        "  model.layers.1.self_attn.k_proj.weight is missing, needed for blocks.1.attention.qkv.weight",
        "  extra is not a parameter of this model",
    ]


def test_wrong_number_of_key_heads_is_named() -> None:
    ours = GPT2(**arguments_from_transformers(llama(num_key_value_heads=2).config.to_dict()))
    with pytest.raises(CheckpointError, match=r"gives \(192, 64\), blocks.0.attention.qkv.weight is \(128, 64\)"):
        from_transformers(llama().state_dict(), ours)


def test_models_without_a_counterpart_are_refused() -> None:
    model = GPT2(vocab_size=8, seq_len=4, num_layers=1, num_heads=2, dim=8, position="rotary", bias=True)
    with pytest.raises(ConfigError) as caught:
        architecture_of(model)
    assert str(caught.value) == (
        "transformers has no architecture for this model: GPT-2 needs that position is 'learned'; Llama needs that "
        "activation is 'swiglu', norm is RMSNorm, bias is False"
    )
    plain: dict[str, Any] = {"vocab_size": 8, "seq_len": 4, "num_layers": 1, "num_heads": 2, "dim": 8}
    assert architecture_of(GPT2(**plain)) == "gpt2"
    assert (
        architecture_of(GPT2(**plain, position="rotary", norm=nn.RMSNorm, activation="swiglu", bias=False)) == "llama"
    )


class MyNorm(nn.LayerNorm):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(input)


class MyRMS(nn.RMSNorm):
    pass


class Parallel(GPT2):
    pass


class ParallelBlock(Block):
    pass


def small(kind: type[GPT2] = GPT2, **changes: Any) -> GPT2:
    return kind(vocab_size=80, seq_len=32, num_layers=2, num_heads=4, dim=32, **changes)


LLAMA_LIKE = {"position": "rotary", "norm": nn.RMSNorm, "activation": "swiglu", "bias": False}


def with_block(kind: type[Block]) -> GPT2:
    model = small()
    model.blocks[1].__class__ = kind
    return model


def with_forward() -> GPT2:
    model = small()
    model.blocks[0].forward = lambda x, *_: x
    return model


def with_eps(eps: float) -> GPT2:
    model = small()
    model.final_norm.eps = eps
    return model


@pytest.mark.parametrize(
    ("build", "text"),
    [
        (
            lambda: small(Parallel),
            r"^model \(Parallel\) must be exactly GPT2 to be written for transformers, which com",
        ),
        (
            lambda: with_block(ParallelBlock),
            r"^blocks.1 \(ParallelBlock\) must be exactly Block to be written for trans",
        ),
        (with_forward, r"^blocks.0 \(Block with another forward\) must be exactly Block to be written for transfor"),
        (lambda: small(norm=MyNorm), r"norm is LayerNorm itself \(blocks.0.attention_norm is its subclass MyNorm\)"),
        (
            lambda: small(**{**LLAMA_LIKE, "norm": MyRMS}),
            r"norm is RMSNorm itself \(blocks.0.attention_norm is its subclass MyRMS\)",
        ),
        (
            lambda: small(norm=partial(nn.LayerNorm, elementwise_affine=False)),
            "GPT-2 needs that blocks.0.attention_norm has a weight, blocks.0.attention_norm has a bias; Llama needs",
        ),
        (
            lambda: small(norm=partial(nn.LayerNorm, bias=False)),
            "GPT-2 needs that blocks.0.attention_norm has a bias; Llama needs",
        ),
        (
            lambda: small(**{**LLAMA_LIKE, "norm": partial(nn.RMSNorm, elementwise_affine=False)}),
            "Llama needs that blocks.0.attention_norm has a weight$",
        ),
        (lambda: with_eps(0.1), r"all norms have one eps \(final_norm has 0.1, the first 1e-05\)"),
    ],
    ids=["model", "block", "forward", "LayerNorm", "RMSNorm", "no affine", "no bias", "no weight", "eps"],
)
def test_what_computes_something_else_is_refused(build: Any, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        to_transformers({}, build())


def test_adapters_and_compiling_are_no_other_class() -> None:
    model = LoRAModel(small, r=2, alpha=2, targets=["attention.qkv", "token_embedding"])
    model.blocks[0].compile()
    assert architecture_of(model) == "gpt2"
    assert plain_type(model.blocks[0].attention.qkv) is nn.Linear
    assert unwrapped(torch.compile(model)) is model
