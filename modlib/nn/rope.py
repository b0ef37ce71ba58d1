"""Rotary position embedding, half-split form, with tables that stay float32 and survive meta devices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class RotaryTable(nn.Module):
    """Cosines and sines for every position, shared by all attention layers of a model.

    The tables are buffers that no checkpoint stores. They are computed on the CPU in float64, rounded once to float32,
    and rebuilt whenever torch moves or converts the module: `to_empty` after the meta device leaves no garbage, and
    `.to(torch.bfloat16)` does not round them. FSDP2's mixed precision casts inputs, not buffers.

    Args:
        seq_len: Number of positions.
        rotary_dim: How many values of each head are rotated; even.
        theta: Base of the wavelengths, 10000 in the paper.

    Source: Su et al. 2021, RoFormer, section 3.2.2; the half-split pairing (i, i + rotary_dim / 2) is GPT-NeoX's.
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, *, seq_len: int, rotary_dim: int, theta: float) -> None:
        super().__init__()
        self.seq_len, self.rotary_dim, self.theta = seq_len, rotary_dim, theta
        self._fill(torch.get_default_device())

    def _fill(self, device: torch.device) -> None:
        if device.type == "meta":
            cos = sin = torch.empty(self.seq_len, self.rotary_dim // 2, dtype=torch.float32, device=device)
        else:
            exponents = torch.arange(0, self.rotary_dim, 2, dtype=torch.float64, device="cpu") / self.rotary_dim
            positions = torch.arange(self.seq_len, dtype=torch.float64, device="cpu")
            angles = torch.outer(positions, self.theta**-exponents)
            cos, sin = angles.cos().float().to(device), angles.sin().float().to(device)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        super()._apply(fn, recurse)  # moves the buffers, which tells the device; their values may be garbage now
        self._fill(self.cos.device)
        return self

    def forward(self, x: Tensor, start: int = 0, positions: Tensor | None = None) -> Tensor:
        """Rotate the first `rotary_dim` values of each head, in float32, and return x's dtype.

        Args:
            x: (B, T, H, D), the positions start .. start + T.
            start: Position of the first token.
            positions: (B, T) int64, where each token's position is its own.
        """
        steps = x.shape[1]
        at = slice(start, start + steps) if positions is None else positions
        cos, sin = self.cos[at].unsqueeze(-2), self.sin[at].unsqueeze(-2)  # (T, 1, rotary_dim / 2), or (B, T, 1, ...)
        half = self.rotary_dim // 2
        first, second = x[..., :half].float(), x[..., half : 2 * half].float()
        rotated = torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)
        if self.rotary_dim == x.shape[-1]:
            return rotated
        return torch.cat((rotated, x[..., self.rotary_dim :]), dim=-1)
