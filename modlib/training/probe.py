"""The run's optimizer and schedule, tried on small parameters."""

from __future__ import annotations

import warnings
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from modlib.components import component_name
from modlib.config import Config
from modlib.optim.muon import ALGORITHMS
from modlib.optim.roles import parameter_roles
from modlib.optim.schedules import Scheduler
from modlib.runtime.errors import ConfigError, ModlibError
from modlib.runtime.units import counted, format_count
from modlib.training.building import build
from modlib.training.cross_checks import check_schedules
from modlib.training.experiment import Experiment

CURVE_POINTS = 200
MOST_SCHEDULE_STEPS = 100_000  # of a schedule without closed form, the curve shows no more


class Probe:
    """The run's optimizer and schedule over small parameters: what they need follows without a large model.

    Args:
        config: Where the settings come from.
        experiment: The settings.
        model: On meta; its groups are the run's.
    """

    def __init__(self, config: Config, experiment: Experiment, model: nn.Module) -> None:
        self.config, self.experiment = config, experiment
        groups = build(config, experiment.parameter_groups)(model)
        self.model = model
        self.stand_ins: list[tuple[nn.Parameter, nn.Parameter]] = []
        small = [{**group, "params": [self._small(parameter) for parameter in group["params"]]} for group in groups]
        self.optimizer: torch.optim.Optimizer = build(config, experiment.optimizer, small)
        check_schedules(config)
        with self._refusals():
            self.scheduler: Scheduler = build(config, experiment.scheduler, self.optimizer)

    def _small(self, parameter: nn.Parameter) -> nn.Parameter:
        small = nn.Parameter(torch.zeros([min(size, 8) for size in parameter.shape]))
        self.stand_ins.append((small, parameter))
        return small

    def learning_rates(self, num_steps: int) -> list[float]:
        """The schedule sampled from the first step to the last."""
        with self._refusals():
            return self._learning_rates(num_steps)

    def _learning_rates(self, num_steps: int) -> list[float]:
        every = max(1, num_steps // CURVE_POINTS)
        if isinstance(self.scheduler, LambdaLR):
            lambdas = self.scheduler.lr_lambdas
            steps = sorted({*range(0, num_steps, every), num_steps - 1})
            return [float(self.scheduler.base_lrs[0] * lambdas[0](step)) for step in steps]
        curve = []
        for step in range(min(num_steps, MOST_SCHEDULE_STEPS)):
            if step % every == 0 or step == num_steps - 1:
                curve.append(float(self.optimizer.param_groups[0]["lr"]))
            self.scheduler.step()
        return curve

    def course(self, num_updates: int) -> list[array[float]]:
        """What the schedule sets in each update, from 0: learning rates and momenta of all groups."""
        found = []
        with self._refusals(), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # that no update is made between two steps
            for update in range(num_updates):
                if update:
                    self.scheduler.step()
                found.append(array("d", [value for group in self.optimizer.param_groups for value in _set_in(group)]))
        return found

    @contextmanager
    def _refusals(self) -> Iterator[None]:
        """Whatever a schedule of torch or of the user raises is told as a setting that it does not take."""
        try:
            yield
        except ModlibError:
            raise
        except Exception as error:
            name = component_name(self.experiment.scheduler)
            words = ": ".join([type(error).__name__, *str(error).splitlines()[:1]])
            raise ConfigError(
                self.config.explain(name, f"scheduler ({name}) must give a rate for every update; it raises {words}")
            ) from error

    def state_bytes(self) -> int:
        """Bytes of optimizer state for the whole model: measured after one update, scaled up by size."""
        for small, _ in self.stand_ins:
            small.grad = torch.zeros_like(small)
        self.optimizer.step()
        total = 0
        for small, parameter in self.stand_ins:
            tensors = [value for value in self.optimizer.state[small].values() if torch.is_tensor(value)]
            # a state tensor of another size than its parameter, such as a step count, is too small to matter
            same = [value for value in tensors if value.shape == small.shape]
            total += sum(value.element_size() for value in same) * parameter.numel()
        return total

    def roles(self) -> list[str]:
        """A line for each role that trained parameters have, and for each way in which the optimizer treats it."""
        names = {id(parameter): name for name, parameter in self.model.named_parameters()}
        groups = {id(small): group for group in self.optimizer.param_groups for small in group["params"]}
        roles = parameter_roles(self.model)
        found: dict[tuple[str, str], list[int]] = {}
        for small, parameter in self.stand_ins:
            kind = roles[names[id(parameter)]].replace("_", " ")
            found.setdefault((kind, _treatment(groups[id(small)])), []).append(parameter.numel())
        return [
            f"{kind}: {format_count(sum(sizes))} in {counted(len(sizes), 'parameter')}{treatment}"
            for (kind, treatment), sizes in found.items()
        ]


def _treatment(group: dict[str, Any]) -> str:
    """What a group of an optimizer says of its parameters, after a comma; empty where it says nothing."""
    words = [ALGORITHMS.get(group["algorithm"], str(group["algorithm"]))] if "algorithm" in group else []
    if "weight_decay" in group:
        words.append(f"weight decay {group['weight_decay']:g}" if group["weight_decay"] else "no weight decay")
    return "".join(f", {word}" for word in words)


def _set_in(group: dict[str, Any]) -> list[float]:
    """The numbers of a parameter group that schedules set."""
    return [float(group["lr"]), float(group.get("momentum", 0.0)), *map(float, group.get("betas", ()))]
