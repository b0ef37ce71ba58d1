"""The balance loss of a mixture of experts, added to an objective."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from modlib.components import component
from modlib.data.batches.batch import Batch
from modlib.nn.losses import Loss
from modlib.nn.routing import RouterLoss, Routing, Usage, usage
from modlib.runtime.errors import ConfigError
from modlib.training.objective import CausalObjective, Forward, Objective, Value


@component("objective", "router_balance", runtime_args=("loss",))
class RouterBalance:
    """An objective plus coefficient x balance loss of a model with experts, which says the coefficient.

    A model that asks for its balance loss gets this around its objective, whatever that is; name it to set `over`.
    Padding is left out. Logged beside the loss: `train/task_loss`, the objective alone, and
    `train/router_balance_loss`, without its coefficient: top_k where all experts are used evenly, up to num_experts
    where all tokens choose the same.

    Args:
        loss: Of the run.
        objective: Called with the loss; what the balance loss is added to. None: CausalObjective.
        over: Which tokens are to be balanced. "global_batch": all of a step, each weighing the same; neither value nor
            gradient depends on how they are cut into micro-batches and ranks. With accumulation a micro-batch's
            gradient needs the shares of all of them, for which each goes through the model once more, without
            gradients. "micro_batch": those of each rank's micro-batch by themselves, and of these losses the mean,
            weighted by unmasked targets; depends on the cut, and costs nothing.

    Raises:
        ConfigError: Another `over`.

    Source: Qiu et al. 2025, Demons in the Detail, section 3 (both ways).
    """

    def __init__(
        self,
        loss: Loss,
        *,
        objective: Callable[[Loss], Objective] | None = None,
        over: Literal["global_batch", "micro_batch"] = "global_batch",
    ) -> None:
        if over not in ("global_batch", "micro_batch"):
            raise ConfigError(f"over ({over!r}) must be 'global_batch' or 'micro_batch'; leave it out for the first")
        self.objective, self.over = (objective or CausalObjective)(loss), over
        self.frozen = self.objective.frozen
        self._asked = RouterLoss(num_experts=1, top_k=1, coefficient=0.0)
        self._reduce: Callable[[Tensor], Tensor] = lambda numbers: numbers
        self._count: Tensor | None = None
        self._numbers: Tensor | None = None

    def bind(self, asked: RouterLoss, reduce: Callable[[Tensor], Tensor]) -> None:
        """Take what the model asks for, and a function that sums a tensor over ranks."""
        self._asked, self._reduce = asked, reduce

    def count(self, batch: Batch) -> Tensor:
        """As of the objective it is added to."""
        return self.objective.count(batch)

    def look(self, model: Forward, batches: Iterator[Batch], num_batches: int, count: Tensor) -> None:
        """Note the divisor, and with several micro-batches how the global batch uses the experts; collective then."""
        self._count, self._numbers = count, None
        if num_batches == 1 or self.over == "micro_batch":  # whose own forward tells
            return
        device = count.device
        # the same dropout and jitter as in the forwards that follow
        with torch.no_grad(), torch.random.fork_rng([device] if device.type == "cuda" else []):
            found = [self._evaluate(model, batch)[1].numbers() for batch in batches]
        self._numbers = self._reduce(torch.stack(found).sum(0))

    def __call__(self, model: Forward, batch: Batch) -> Value:
        """The objective's value with this micro-batch's part of the balance loss; collective where it is alone."""
        (total, count, metrics), used = self._evaluate(model, batch)
        if self.over == "micro_batch":
            balance = count * used.share(used.numbers())
        else:
            assert self._count is not None, "look comes first"
            numbers = self._reduce(used.numbers()) if self._numbers is None else self._numbers
            balance = self._count * used.share(numbers)
        parts = {"task_loss": total.detach(), "router_balance_loss": balance.detach()}
        return total + self._asked.coefficient * balance, count, {**metrics, **parts}

    def _evaluate(self, model: Forward, batch: Batch) -> tuple[Value, Usage]:
        routing = Routing()
        value = self.objective(partial(model, routing=routing), batch)
        return value, usage(routing, self._asked.top_k)
