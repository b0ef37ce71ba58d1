"""The balance loss of a mixture of experts, added to an objective."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from modlib.data.batches.batch import Batch
from modlib.nn.routing import RouterLoss, Routing, Usage, usage
from modlib.training.objective import Forward, Objective, Value


class RouterBalance:
    """An objective plus coefficient x balance loss of the global batch.

    A step minimises (sum of the objective) / (its count) + coefficient x (balance loss of the global batch), each token
    of it weighing the same, padding left out. So neither value nor gradient depends on how the global batch is cut into
    micro-batches and ranks. The price of accumulation: a micro-batch's gradient needs the shares f_e of all of them,
    for which each goes through the model once more, without gradients.

    Logged beside the loss: `train/task_loss`, the objective alone, and `train/router_balance_loss`, without its
    coefficient: top_k where all experts are used evenly, up to num_experts where all tokens choose the same.

    Args:
        objective: What it is added to; may call the model more than once.
        loss: What the model asks for.
        reduce: Sums a tensor over ranks.
    """

    def __init__(self, objective: Objective, loss: RouterLoss, reduce: Callable[[Tensor], Tensor]) -> None:
        self.objective, self.loss, self.reduce = objective, loss, reduce
        self.frozen = objective.frozen
        self._count: Tensor | None = None
        self._numbers: Tensor | None = None

    def count(self, batch: Batch) -> Tensor:
        """As of the objective it is added to."""
        return self.objective.count(batch)

    def look(self, model: Forward, batches: Iterator[Batch], num_batches: int, count: Tensor) -> None:
        """Note the divisor, and with several micro-batches how the global batch uses the experts; collective then."""
        self._count, self._numbers = count, None
        if num_batches == 1:  # whose own forward tells
            return
        device = count.device
        # the same dropout and jitter as in the forwards that follow
        with torch.no_grad(), torch.random.fork_rng([device] if device.type == "cuda" else []):
            found = [self._evaluate(model, batch)[1].numbers() for batch in batches]
        self._numbers = self.reduce(torch.stack(found).sum(0))

    def __call__(self, model: Forward, batch: Batch) -> Value:
        """The objective's value with this micro-batch's part of the balance loss; collective where it is alone."""
        assert self._count is not None, "look comes first"
        (total, count, metrics), used = self._evaluate(model, batch)
        numbers = self.reduce(used.numbers()) if self._numbers is None else self._numbers
        balance = self._count * used.share(numbers)
        parts = {"task_loss": total.detach(), "router_balance_loss": balance.detach()}
        return total + self.loss.coefficient * balance, count, {**metrics, **parts}

    def _evaluate(self, model: Forward, batch: Batch) -> tuple[Value, Usage]:
        routing = Routing()
        value = self.objective(partial(model, routing=routing), batch)
        return value, usage(routing, self.loss.top_k)
