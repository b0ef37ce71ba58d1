"""torch.compile: when it pays, and what is compiled."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from typing import Literal

import torch
from torch import nn

from modlib.runtime.signals import ignored_in_children

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


def start_compile_workers() -> None:
    """Start inductor's helper processes so that a stop signal to the whole job does not kill them.

    They would start by themselves at the first compilation, and die of SIGUSR2: then that compilation never ends.
    """
    try:
        from torch._inductor.async_compile import AsyncCompile, get_compile_threads
    except ImportError:  # private to torch: where it has moved, the workers start later, unprotected
        return
    if get_compile_threads() > 1:
        with ignored_in_children():
            AsyncCompile.process_pool()
