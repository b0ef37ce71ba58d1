"""The vision transformer: an image as a sequence of patches that all see each other."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

from modlib.models.gpt2 import Block
from modlib.nn.cross_attention import SelfAttention
from modlib.nn.feed_forward import Activation, FeedForward


class VisionTransformer(nn.Module):
    """Patches of an image, embedded, with learned positions, through pre-norm blocks without a causal mask.

    The norm after the last block is left to what reads the patches (AttentionPooling has one).

    Args:
        image_size: Height and width of the images, in pixels; a multiple of patch_size.
        patch_size: Height and width of a patch.
        num_channels: Channels of the images.
        num_layers: Number of blocks.
        num_heads: Heads; must divide dim.
        dim: Size of the residual stream.
        ffn_dim: Hidden size of the feed-forward.
        activation: As for FeedForward.
        norm: A norm that takes its size first.
        bias: Biases in projections and norms; the patch embedding included.
        dropout: Share dropped of embeddings, attention weights and residual branches; in training only.

    Source: Dosovitskiy et al. 2021, An Image is Worth 16x16 Words, section 3.1 (without class token and head).
    """

    def __init__(
        self,
        *,
        image_size: int,
        patch_size: int,
        num_channels: int,
        num_layers: int,
        num_heads: int,
        dim: int,
        ffn_dim: int,
        activation: Activation,
        norm: Callable[..., nn.Module],
        bias: bool,
        dropout: float,
    ) -> None:
        super().__init__()
        self.image_size, self.num_channels, self.dropout = image_size, num_channels, dropout
        self.num_patches = (image_size // patch_size) ** 2
        self.patch_embedding = nn.Conv2d(num_channels, dim, patch_size, patch_size, bias=bias)
        self.position_embedding = nn.Embedding(self.num_patches, dim)
        self.blocks = nn.ModuleList()
        for _ in range(num_layers):
            attention = SelfAttention(
                dim=dim, num_heads=num_heads, num_kv_heads=num_heads, rotary=None, qk_norm=None, bias=bias,
                dropout=dropout,
            )  # fmt: skip
            feed_forward = FeedForward(dim=dim, ffn_dim=ffn_dim, activation=activation, bias=bias, dropout=dropout)
            self.blocks.append(Block(dim=dim, norm=norm, bias=bias, attention=attention, feed_forward=feed_forward))

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, C, H, W) to one vector per patch, (B, num_patches, dim), row by row.

        Raises:
            ValueError: Images of another shape than the model was built for.
        """
        wanted = (self.num_channels, self.image_size, self.image_size)
        if tuple(images.shape[1:]) != wanted:
            raise ValueError(
                f"images {tuple(images.shape)} must be (B, {', '.join(map(str, wanted))}); set image_size and "
                "num_channels of the model to those of the data"
            )
        x = self.patch_embedding(images).flatten(2).transpose(1, 2) + self.position_embedding.weight
        x = F.dropout(x, self.dropout, self.training) if self.dropout else x
        for block in cast(Iterable[Block], self.blocks):
            x = block(x)
        return x
