"""The one rule by which norms are built, and torch's norms against their formulas."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import gin
import pytest
import torch
from torch import Tensor, nn

from modlib.components import component
from modlib.config import load
from modlib.nn.norms import build_norm


def test_bias_is_left_out_where_the_norm_has_one() -> None:
    assert build_norm(nn.LayerNorm, 4, bias=True).bias is not None
    assert build_norm(nn.LayerNorm, 4, bias=False).bias is None
    assert isinstance(build_norm(nn.RMSNorm, 4, bias=False), nn.RMSNorm)


def test_settings_of_the_norm_are_kept() -> None:
    norm = build_norm(partial(nn.LayerNorm, eps=0.5, bias=False), 4, bias=True)
    assert isinstance(norm, nn.LayerNorm)
    assert (norm.eps, norm.bias) == (0.5, None)


def formula(norm: Any, x: Tensor, eps: float) -> Tensor:
    """Both norms in float64."""
    x, weight = x.double(), norm.weight.detach().double()
    if isinstance(norm, nn.RMSNorm):
        return x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt() * weight
    centred = x - x.mean(-1, keepdim=True)
    bias = norm.bias.detach().double()
    return centred / (centred.pow(2).mean(-1, keepdim=True) + eps).sqrt() * weight + bias


def filled(kind: Any, dtype: torch.dtype, **settings: Any) -> Any:
    norm = build_norm(partial(kind, **settings), 64, bias=True).to(dtype)
    generator = torch.Generator().manual_seed(1)
    for parameter in norm.parameters():
        parameter.data.copy_(torch.randn(64, generator=generator))
    return norm


@pytest.mark.parametrize("kind", [nn.LayerNorm, nn.RMSNorm])
@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-6)])
def test_formula(kind: Any, scale: float, dtype: torch.dtype, tolerance: float) -> None:
    norm = filled(kind, dtype, eps=1e-5)
    x = (torch.randn(3, 5, 64, generator=torch.Generator().manual_seed(0)) * scale + scale / 3).to(dtype)
    found, expected = norm(x), formula(norm, x, 1e-5)
    assert found.dtype == dtype
    assert (found.double() - expected).abs().max() < tolerance * (1 + expected.abs().max())


@pytest.mark.parametrize("kind", [nn.LayerNorm, nn.RMSNorm])
def test_bfloat16_computes_in_float32(kind: Any) -> None:
    """The result is the exact one rounded at most once or twice; sums of 4096 terms in bfloat16 would be far off."""
    norm = build_norm(partial(kind, eps=1e-5), 4096, bias=True).to(torch.bfloat16)
    x = (torch.randn(7, 4096, generator=torch.Generator().manual_seed(0)) + 3).bfloat16()
    found = norm(x)
    assert found.dtype == torch.bfloat16
    expected = formula(norm, x, 1e-5)
    spacing = torch.finfo(torch.bfloat16).eps * expected.abs().clamp(min=1e-3)
    assert ((found.double() - expected).abs() <= spacing).all()


@pytest.mark.parametrize("kind", [nn.LayerNorm, nn.RMSNorm])
def test_gradients_are_the_formulas(kind: Any) -> None:
    norm = filled(kind, torch.float64, eps=1e-5)
    x = torch.randn(2, 3, 64, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(norm, (x,))


def test_default_eps() -> None:
    """LayerNorm 1e-5; RMSNorm the machine epsilon of the type it computes in, which for bfloat16 is float32."""
    assert nn.LayerNorm(64).eps == 1e-5
    assert nn.RMSNorm(64).eps is None
    tiny = torch.full((1, 64), 1e-4)
    for dtype, eps, tolerance in (
        (torch.float64, torch.finfo(torch.float64).eps, 1e-12),
        (torch.float32, torch.finfo(torch.float32).eps, 1e-6),
        (torch.bfloat16, torch.finfo(torch.float32).eps, 5e-3),
    ):
        norm, x = nn.RMSNorm(64).to(dtype), tiny.to(dtype)
        assert norm(x)[0, 0].item() == pytest.approx(formula(norm, x, eps)[0, 0].item(), rel=tolerance)


@component("run", "norm_choice")
def norm_choice(norm: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    """What a model takes."""
    return norm


@pytest.mark.parametrize("name", ["LayerNorm", "RMSNorm"])
def test_gin_chooses_the_norm_of_a_model(name: str, tmp_path: Path) -> None:
    text = f"""
norm_choice.norm = @{name}
{name}.eps = 1e-3
"""
    (tmp_path / "run.gin").write_text(text)
    load([tmp_path / "run.gin"]).activate()
    norm = build_norm(gin.get_configurable("norm_choice")(), 8, bias=False)
    assert type(norm).__name__ == name
    assert norm.eps == 1e-3
