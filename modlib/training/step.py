"""One optimizer step: from micro-batches to updated parameters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from modlib.data.batches.batch import Batch, map_tensors
from modlib.distributed.fsdp import set_gradient_sync
from modlib.models.adapter_checks import first_gradients, require_gradients
from modlib.runtime.errors import NonFiniteError
from modlib.training.known_ids import require_known_ids
from modlib.training.parts import Parts, sum_over_ranks

_REMEDY = (
    "the parameters were not updated with it. Lower the learning rate, lengthen the warm-up, or look at the batches"
)


@dataclass(frozen=True)
class StepResult:
    """What one step leaves for the log, still on the device.

    Args:
        loss_sum: Sum of the objective over all ranks, float32 scalar.
        tokens: What it is a sum over, its count over all ranks: unmasked targets, scalar.
        grad_norm: Total gradient norm before clipping, scalar.
        metrics: Of the objective, by name: sums as the loss is.
    """

    loss_sum: Tensor
    tokens: Tensor
    grad_norm: Tensor
    metrics: Mapping[str, Tensor] = field(default_factory=dict)

    def mean_loss(self) -> float:
        """The token-weighted loss of the global batch. A host sync: for log steps only."""
        return float(self.loss_sum / self.tokens)

    def mean_metrics(self) -> dict[str, float]:
        """The objective's metrics of the global batch. A host sync for each: for log steps only."""
        return {name: float(total / self.tokens) for name, total in self.metrics.items()}


def update(parts: Parts, micro_batches: Sequence[Batch], step: int) -> StepResult:
    """Do optimizer step number `step`.

    The objective's sum of every micro-batch is divided by its count (unmasked targets) in the whole global batch, so
    accumulation, masking and world size do not change what is minimised.

    Raises:
        ConfigError: In the first step, an adapter that gets no gradient.
        DataError: A token id is not below the model's vocabulary.
        NonFiniteError: The loss or the gradient norm is NaN or Inf; parameters and optimizer state are as before the
            step.
    """
    for inputs, targets in micro_batches:
        require_known_ids(parts, inputs, targets, f"step {step}")
    tokens = _global_tokens(parts, micro_batches)
    # FSDP averages gradients over ranks; the objective is a sum over ranks divided by the global token count
    scale = parts.world.size / tokens
    if parts.look is not None:
        parts.look(_on_device(parts, micro_batches), len(micro_batches), tokens)
    loss_sum = torch.zeros((), device=parts.world.device)
    metrics: dict[str, Tensor] = {}
    for index, batch in enumerate(_on_device(parts, micro_batches)):
        set_gradient_sync(parts.model, index == len(micro_batches) - 1)
        loss, _, named = parts.forward(batch)
        (loss * scale).backward()
        loss_sum += loss.detach()
        for name, part in named.items():
            metrics[name] = metrics[name] + part if name in metrics else part
    loss_sum, metrics = _over_ranks(parts, loss_sum, metrics)  # as the norm is: what one rank finds, all find
    grad_norm = parts.clipper.norm()
    _guard(parts, grad_norm, loss_sum / tokens, step)
    _prove_adapters(parts, loss_sum)
    parts.clipper.clip(grad_norm)
    parts.optimizer.step()
    parts.scheduler.step()
    parts.optimizer.zero_grad(set_to_none=True)
    return StepResult(loss_sum, tokens, grad_norm, metrics)


def _prove_adapters(parts: Parts, loss_sum: Tensor) -> None:
    """See once that every adapter gets a gradient; a host sync in the first step alone."""
    if parts.unproven:
        found = sum_over_ranks(first_gradients(list(parts.unproven.values())), parts.world)
        if require_gradients(list(parts.unproven), found, bool(loss_sum)):
            parts.unproven = {}


def _on_device(parts: Parts, micro_batches: Sequence[Batch]) -> Iterator[Batch]:
    """One micro-batch after the other."""
    for inputs, targets in micro_batches:
        yield map_tensors(parts.to_device, inputs), parts.to_device(targets)


def _over_ranks(parts: Parts, loss: Tensor, metrics: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """The sums over all ranks, in one collective."""
    if not metrics:
        return sum_over_ranks(loss, parts.world), metrics
    summed, *others = sum_over_ranks(torch.stack([loss, *(part.to(loss) for part in metrics.values())]), parts.world)
    return summed, dict(zip(metrics, others, strict=True))


def _guard(parts: Parts, grad_norm: Tensor, loss: Tensor, step: int) -> None:
    """Keep NaN and Inf out of the parameters: by an error here, or without a host sync where the optimizer can skip.

    A loss may be NaN where all gradients are finite, so both are tested. A fused optimizer takes `found_inf` as
    torch.amp's GradScaler gives it, and leaves parameters and state untouched when it is 1; what was skipped is raised
    at the next log step or checkpoint (see `require_finite`).
    """
    finite = torch.isfinite(grad_norm) & torch.isfinite(loss)
    if parts.guard_on_device:
        non_finite = (~finite).float()
        parts.optimizer.found_inf = non_finite  # type: ignore[attr-defined]
        parts.num_skipped = non_finite if parts.num_skipped is None else parts.num_skipped + non_finite
    elif not finite:
        raise NonFiniteError(
            f"loss ({float(loss):.6g}) and grad_norm ({float(grad_norm):.6g}) must be finite at step {step}; {_REMEDY}"
        )


def require_finite(parts: Parts, step: int) -> None:
    """Raise for updates that were skipped on the device since the start. A host sync: for log steps and checkpoints.

    Raises:
        NonFiniteError: At least one was.
    """
    if parts.num_skipped is not None and (skipped := int(parts.num_skipped)):
        raise NonFiniteError(
            f"loss and grad_norm must be finite, but were not in {skipped} of the steps up to {step}; {_REMEDY}"
        )


def _global_tokens(parts: Parts, micro_batches: Sequence[Batch]) -> Tensor:
    """Unmasked targets of the global batch; at least 1, so that an all-masked batch gives zero gradients."""
    local = sum(int(parts.objective.count(batch)) for batch in micro_batches)
    tokens = torch.tensor(float(local), device=parts.world.device)
    return sum_over_ranks(tokens, parts.world).clamp_(min=1)
