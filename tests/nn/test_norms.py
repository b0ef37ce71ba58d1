"""The one rule by which norms are built."""

from __future__ import annotations

from functools import partial

from torch import nn

from modlib.nn.norms import build_norm


def test_bias_is_left_out_where_the_norm_has_one() -> None:
    assert build_norm(nn.LayerNorm, 4, bias=True).bias is not None
    assert build_norm(nn.LayerNorm, 4, bias=False).bias is None
    assert isinstance(build_norm(nn.RMSNorm, 4, bias=False), nn.RMSNorm)


def test_settings_of_the_norm_are_kept() -> None:
    norm = build_norm(partial(nn.LayerNorm, eps=0.5, bias=False), 4, bias=True)
    assert isinstance(norm, nn.LayerNorm)
    assert (norm.eps, norm.bias) == (0.5, None)
