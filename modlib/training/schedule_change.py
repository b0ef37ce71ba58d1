"""From which update on do the schedules of two configurations differ?"""

from __future__ import annotations

from array import array
from typing import NamedTuple

import torch

from modlib.config import Config
from modlib.training.building import build, build_experiment
from modlib.training.probe import Probe


class Departure(NamedTuple):
    """The first update in which two schedules differ.

    Args:
        update: From 0: so many updates have the same rates, and a checkpoint of that step or before serves both.
        before: The first learning rate of the first schedule there.
        after: Of the second.
    """

    update: int
    before: float
    after: float


def departure(before: Config, config: Config, num_updates: int) -> Departure | None:
    """Compare the rates (and momenta) of all parameter groups, update by update; None where none of them differs.

    Args:
        before: One configuration.
        config: Another, which is the active one afterwards.
        num_updates: How many are compared; at most the steps of either.

    Raises:
        ConfigError: One of the two cannot be built.
    """
    old = _course(before, num_updates)
    new = _course(config, num_updates)
    for update, (left, right) in enumerate(zip(old, new, strict=True)):
        if left != right:
            differing = next((index for index, pair in enumerate(zip(left, right)) if pair[0] != pair[1]), 0)
            return Departure(update, left[differing], right[differing])
    return None


def _course(config: Config, num_updates: int) -> list[array[float]]:
    experiment = build_experiment(config)
    with torch.device("meta"):
        model = build(config, experiment.model)
    return Probe(config, experiment, model).course(num_updates)
