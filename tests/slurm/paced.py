"""A loss whose steps take a known time, for tests that have to happen in mid-training on any machine."""

from __future__ import annotations

import os
import socket
import time

from torch import Tensor

from modlib.components import component
from modlib.nn.losses import CLMCrossEntropyLoss, Outputs

if "SLURM_PROCID" in os.environ and os.environ.get("PACED_HANGS_ON") == socket.gethostname():
    time.sleep(600)  # a node whose file system does not answer


@component("loss", "paced_cross_entropy")
class PacedCrossEntropyLoss(CLMCrossEntropyLoss):
    """Cross entropy that waits; and, where a file asks for it, a rank that fails.

    Args:
        seconds: How long each call waits.
        fail_file: While this file exists, the rank that it names raises.
    """

    def __init__(self, seconds: float = 0.1, fail_file: str = "") -> None:
        super().__init__()
        self.seconds, self.fail_file = seconds, fail_file

    def __call__(self, outputs: Outputs, targets: Tensor) -> Tensor:
        time.sleep(self.seconds)
        if self.fail_file and os.path.exists(self.fail_file):
            with open(self.fail_file) as file:
                if file.read().strip() == os.environ.get("RANK"):
                    raise ArithmeticError("the loss of this rank fails on purpose")
        return super().__call__(outputs, targets)
