"""The vision transformer against torch's own encoder layers, and its patches."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from modlib.models.vision_transformer import VisionTransformer
from modlib.nn.attention import split_qkv

SIZES: dict[str, Any] = {
    "image_size": 12, "patch_size": 4, "num_channels": 3, "num_layers": 2, "num_heads": 2, "dim": 16, "ffn_dim": 24,
    "activation": "gelu", "norm": nn.LayerNorm, "bias": True, "dropout": 0.0,
}  # fmt: skip


def vision(**changes: Any) -> VisionTransformer:
    torch.manual_seed(0)
    model = VisionTransformer(**{**SIZES, **changes})
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    return model


def torchs_layer(block: Any) -> nn.TransformerEncoderLayer:
    layer = nn.TransformerEncoderLayer(16, 2, 24, 0.0, "gelu", batch_first=True, norm_first=True)
    q, k, v = split_qkv(block.attention.qkv.weight, 2, 2)
    biases = split_qkv(block.attention.qkv.bias, 2, 2)
    with torch.no_grad():
        layer.self_attn.in_proj_weight.copy_(torch.cat((q, k, v)))
        layer.self_attn.in_proj_bias.copy_(torch.cat(biases))
    layer.self_attn.out_proj.load_state_dict(block.attention.out.state_dict())
    layer.linear1.load_state_dict(block.feed_forward.up.state_dict())
    layer.linear2.load_state_dict(block.feed_forward.down.state_dict())
    layer.norm1.load_state_dict(block.attention_norm.state_dict())
    layer.norm2.load_state_dict(block.feed_forward_norm.state_dict())
    return layer


def test_equals_torchs_encoder_layers_on_unfolded_patches() -> None:
    model, images = vision(), torch.randn(2, 3, 12, 12)
    patches = nn.functional.unfold(images, 4, stride=4).transpose(1, 2)  # (B, 9, 3 x 4 x 4), row by row
    x = nn.functional.linear(patches, model.patch_embedding.weight.flatten(1), model.patch_embedding.bias)
    x = x + model.position_embedding.weight
    for block in model.blocks:
        x = torchs_layer(block)(x)
    assert model(images).shape == (2, 9, 16)
    assert torch.allclose(model(images), x, atol=1e-5)


def test_every_patch_sees_every_other() -> None:
    model, images = vision(num_layers=1), torch.randn(1, 3, 12, 12)
    changed = images.clone()
    changed[:, :, -1, -1] += 1.0  # in the last patch
    assert ((model(images) - model(changed)).abs().amax(dim=-1) > 1e-5).all()


def test_bias_false_leaves_none() -> None:
    assert not [name for name, _ in vision(bias=False).named_parameters() if name.endswith("bias")]


def test_dropout_is_in_training_only() -> None:
    model, images = vision(dropout=0.5), torch.randn(1, 3, 12, 12)
    assert not torch.equal(model(images), model(images))
    model.eval()
    assert torch.equal(model(images), model(images))


@pytest.mark.parametrize("shape", [(1, 3, 16, 16), (1, 1, 12, 12), (1, 3, 12, 16)])
def test_other_images_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"images \(1, .*\) must be \(B, 3, 12, 12\); set image_size and num_channels"):
        vision()(torch.zeros(shape))
