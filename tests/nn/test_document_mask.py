from __future__ import annotations

import copy
import shutil

import pytest
import torch

from modlib.nn.attention import CausalSelfAttention
from modlib.nn.document_mask import document_mask
from modlib.nn.rope import RotaryTable

DOCUMENT_IDS = torch.tensor([[0, 0, 0, 1, 1, 2, 3, 3], [0, 1, 1, 1, 1, 1, 1, 1]], dtype=torch.int32)


def test_positions_begin_anew_and_nothing_of_another_document_is_seen() -> None:
    positions, allowed = document_mask(DOCUMENT_IDS, torch.float32)
    assert positions.tolist() == [[0, 1, 2, 0, 1, 0, 0, 1], [0, 0, 1, 2, 3, 4, 5, 6]]
    assert allowed.shape == (2, 1, 8, 8)
    for row, ids in enumerate(DOCUMENT_IDS.tolist()):
        for query in range(8):
            for key in range(8):
                seen = key <= query and ids[key] == ids[query]
                assert allowed[row, 0, query, key] == (0 if seen else -torch.inf)


@pytest.mark.parametrize("num_kv_heads", [1, 2, 4])
def test_flex_attention_computes_the_same(num_kv_heads: int) -> None:
    torch.manual_seed(0)
    module = CausalSelfAttention(
        dim=64,
        num_heads=4,
        num_kv_heads=num_kv_heads,
        rotary=RotaryTable(seq_len=8, rotary_dim=16, theta=100.0),
        qk_norm=None,
        bias=True,
        dropout=0.0,
    )
    x = torch.randn(2, 8, 64)
    with torch.no_grad():
        expected = module(x, document_mask(DOCUMENT_IDS, torch.float32))
        found = module(x, document_mask(DOCUMENT_IDS, torch.float32, flex=True))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
@pytest.mark.parametrize("rotary", [False, True])
def test_compiled_flex_attention_computes_the_same(rotary: bool) -> None:
    """Forward alone: that is all there is of it on a CPU."""
    torch.manual_seed(0)
    table = RotaryTable(seq_len=128, rotary_dim=16, theta=10000.0) if rotary else None
    module = CausalSelfAttention(
        dim=64, num_heads=4, num_kv_heads=2, rotary=table, qk_norm=None, bias=True, dropout=0.0
    )
    document_ids = (torch.rand(2, 128) < 0.05).cumsum(1).int()
    x = torch.randn(2, 128, 64)
    with torch.no_grad():
        expected = module(x, document_mask(document_ids, torch.float32))
        compiled = torch.compile(module, dynamic=False)
        found = compiled(x, document_mask(document_ids, torch.float32, flex=True))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("num_kv_heads", [2, 4])
@pytest.mark.parametrize("rotary", [False, True])
@pytest.mark.parametrize("kind", ["mask", "compiled flex"])
def test_a_gpu_computes_the_same_forward_and_backward(kind: str, rotary: bool, num_kv_heads: int) -> None:
    """Against the CPU with a mask: outputs, and the gradients of the inputs and of every parameter."""
    torch.manual_seed(0)
    table = RotaryTable(seq_len=256, rotary_dim=16, theta=10000.0) if rotary else None
    module = CausalSelfAttention(
        dim=64, num_heads=4, num_kv_heads=num_kv_heads, rotary=table, qk_norm=None, bias=True, dropout=0.0
    )
    document_ids = (torch.rand(2, 256) < 0.05).cumsum(1).int()
    x, weight = torch.randn(2, 256, 64), torch.randn(2, 256, 64)

    def computed(module: CausalSelfAttention, device: str, flex: bool) -> dict[str, torch.Tensor]:
        inputs = x.detach().to(device).requires_grad_()
        mask = document_mask(document_ids.to(device), torch.float32, flex=flex)
        run = torch.compile(module, dynamic=False) if flex else module
        out = run(inputs, mask)
        (out * weight.to(device)).sum().backward()
        assert inputs.grad is not None
        grads = {name: parameter.grad for name, parameter in module.named_parameters()}
        found = {"out": out.detach(), "inputs": inputs.grad, **grads}
        return {name: value.cpu() for name, value in found.items() if value is not None}

    on_gpu = copy.deepcopy(module).cuda()
    expected = computed(module, "cpu", flex=False)
    found = computed(on_gpu, "cuda", flex=kind == "compiled flex")
    assert set(found) == set(expected) > {"out", "inputs"}
    for name, value in expected.items():
        # Loose enough for multiplications in TF32 (10 bits of mantissa), far below what a wrong mask does.
        scale = float(value.abs().max())
        torch.testing.assert_close(
            found[name], value, rtol=0, atol=2e-3 * scale, msg=lambda text, name=name: f"{name}: {text}"
        )
