"""Optimizers of torch whose updates cannot work on sharded parameters, refusing them before the first step."""

from __future__ import annotations

from typing import Any

import torch

from modlib.components import component
from modlib.runtime.errors import ConfigError


class _Unsharded:
    """Takes no DTensor; comes before torch's class, whose signature stays."""

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters, none of them sharded.

        Raises:
            ConfigError: One that is.
        """
        super().add_param_group(param_group)  # type: ignore[misc]
        held = self.param_groups[-1]["params"]  # type: ignore[attr-defined]
        if any(hasattr(parameter, "device_mesh") for parameter in held):
            raise ConfigError(
                f"optimizer ({type(self).__name__}) must have whole parameters: torch cannot update sharded ones with "
                "it; train in one process, or choose another, such as AdamW"
            )


@component("optimizer", "adafactor", runtime_args=("params",))
class Adafactor(_Unsharded, torch.optim.Adafactor):
    """torch's Adafactor: second moments of a matrix kept as one row and one column. Only in one process.

    Source: Shazeer and Stern 2018, Adafactor: Adaptive Learning Rates with Sublinear Memory Cost, algorithm 5.
    """


@component("optimizer", "rprop", runtime_args=("params",))
class Rprop(_Unsharded, torch.optim.Rprop):
    """torch's Rprop: step sizes from the signs of gradients; for batches of all the data. Only in one process.

    Source: Riedmiller and Braun 1993, A direct adaptive method for faster backpropagation learning: RPROP.
    """
