"""torch.compile: when it pays, and what is compiled."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from typing import Literal

import torch
from torch import nn

COMPILATION_PAYS_AFTER_FLOPS = 4e13
"""On a CPU: work from which compiling (tens of seconds) is earned back by steps that are some 1.3 times as fast."""


def should_compile(choice: bool | Literal["auto"], device: torch.device, total_flops: float) -> bool:
    """Decide once per run, from numbers that do not change on resume.

    Args:
        choice: True, False or "auto".
        device: Where training runs.
        total_flops: Floating-point operations of the whole run on this rank.
    """
    if choice != "auto":
        return choice
    if device.type == "cuda":
        return True
    return shutil.which("g++") is not None and total_flops >= COMPILATION_PAYS_AFTER_FLOPS


def compile_blocks(blocks: Sequence[nn.Module]) -> None:
    """Compile each block in place: parameter names stay, and equal blocks share one compilation."""
    for block in blocks:
        block.compile(dynamic=False)
