"""Which parameters the optimizer decays."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from torch import nn

from modlib.components import component
from modlib.optim.roles import decays
from modlib.runtime.errors import ConfigError


def compiled_patterns(argument: str, patterns: Sequence[str]) -> list[re.Pattern[str]]:
    """Regular expressions of an argument.

    Raises:
        ConfigError: One that is not.
    """
    problems, compiled = [], []
    for pattern in patterns:
        try:
            compiled.append(re.compile(pattern))
        except re.error as error:
            problems.append(f"{argument} ({pattern!r}) must be a regular expression: {error}")
    if problems:
        raise ConfigError(problems)
    return compiled


def require_matches(argument: str, patterns: Sequence[re.Pattern[str]], model: nn.Module) -> None:
    """Refuse patterns that are found in no parameter's name.

    Raises:
        ConfigError: One that is not.
    """
    names = [name for name, _ in model.named_parameters()]
    unmatched = [pattern.pattern for pattern in patterns if not any(map(pattern.search, names))]
    if unmatched:
        raise ConfigError(
            f"{argument} ({', '.join(map(repr, unmatched))}) must match a parameter of {type(model).__name__}; its "
            f"names look like {', '.join(names[:3])}"
        )


@component("parameter_groups", "decay")
class DecayGroups:
    """Weight decay for matrices, none for norms, biases and other vectors.

    What a parameter is for decides (see modlib/optim/roles.py), not its axes: a bias of several experts and a vector
    written (1, 1, dim) do not decay, nor do A_log, D and dt_bias of Mamba-like layers, depthwise convolutions, and what
    its author marked `_no_weight_decay`. Nor does an embedding that was opted out, or a name in which an excluded
    pattern is found. Decayed parameters take the optimizer's weight_decay, the others 0. Frozen parameters are left
    out, a parameter with two names is in once, and every trainable parameter is in exactly one group.

    Args:
        decay_embeddings: Whether nn.Embedding tables decay; a tied output projection is one of them.
        weight_decay_excluded: Regular expressions searched in parameter names; each must be found at least once.

    Raises:
        ConfigError: A pattern that is not a regular expression or matches no parameter; nothing to train.

    Source: Radford et al. 2018, GPT, section 4.1 (decay on all non-bias and gain weights).
    """

    def __init__(self, decay_embeddings: bool = True, weight_decay_excluded: Sequence[str] = ()) -> None:
        self.decay_embeddings = decay_embeddings
        self.patterns = compiled_patterns("weight_decay_excluded", weight_decay_excluded)

    def __call__(self, model: nn.Module) -> list[dict[str, Any]]:
        """Parameter groups for a torch optimizer: the decayed ones first; a group without parameters is left out.

        Args:
            model: Plain or sharded by FSDP2; shapes are those of the whole parameter.
        """
        require_matches("weight_decay_excluded", self.patterns, model)
        names = dict(model.named_parameters())  # torch lists a shared parameter once
        embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
        decaying = decays(model)
        decayed: list[nn.Parameter] = []
        kept: list[nn.Parameter] = []
        for name, parameter in names.items():
            if not parameter.requires_grad:
                continue
            excluded = any(pattern.search(name) for pattern in self.patterns)
            if id(parameter) in embeddings and not self.decay_embeddings:
                excluded = True
            (decayed if name in decaying and not excluded else kept).append(parameter)
        num_trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        if num_trainable == 0:
            raise ConfigError(f"{type(model).__name__} must have a trainable parameter; all {len(names)} are frozen")
        num_grouped = sum(parameter.numel() for parameter in decayed + kept)
        assert num_grouped == num_trainable, f"groups hold {num_grouped} of {num_trainable} trainable parameters"
        groups: list[dict[str, Any]] = [{"params": decayed}, {"params": kept, "weight_decay": 0.0}]
        return [group for group in groups if group["params"]]
