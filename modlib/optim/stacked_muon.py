"""Muon for matrices that one parameter stacks along its first axis, as the experts of a mixture: each by itself."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.optim import Optimizer

_VALUES_AT_ONCE = 1 << 26  # 128 MiB in bfloat16, of which a few are held


class StackedMuon(Optimizer):
    """torch's Muon for parameters (E, m, n): every one of the E matrices gets the update that it would get alone.

    Momentum and weight decay are element by element. FSDP2 shards the first axis, so each rank has whole matrices and
    orthogonalises its own; a parameter that is sharded along another axis is gathered for it.

    Args:
        params: Parameters of three axes, or groups of them, with the settings of torch.optim.Muon.
        settings: Defaults of all groups: lr, weight_decay, momentum, nesterov, ns_coefficients, eps, ns_steps,
            adjust_lr_fn.

    Raises:
        ValueError: A parameter that has not three axes.

    Source: torch.optim.Muon; Jordan et al. 2024, Muon.
    """

    def __init__(self, params: Iterable[Any], settings: dict[str, Any]) -> None:
        super().__init__(params, settings)
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.ndim != 3:
                    raise ValueError(f"parameters of StackedMuon must have three axes, not {tuple(parameter.shape)}")

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Update all parameters that have gradients."""
        assert closure is None
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    _update(parameter, group, self.state[parameter])


def _update(parameter: Tensor, group: dict[str, Any], state: dict[str, Any]) -> None:
    grad = cast(Tensor, parameter.grad)
    if "momentum_buffer" not in state:
        state["momentum_buffer"] = torch.zeros_like(grad)
    momentum = state["momentum_buffer"]
    momentum.lerp_(grad, 1 - group["momentum"])
    update = grad.lerp(momentum, group["momentum"]) if group["nesterov"] else momentum
    step = _on_whole_matrices(update, group)
    lr = float(group["lr"])
    parameter.mul_(1 - lr * group["weight_decay"])
    parameter.add_(step, alpha=-lr * _lr_ratio(group["adjust_lr_fn"], *parameter.shape[-2:]))


def _on_whole_matrices(update: Tensor, group: dict[str, Any]) -> Tensor:
    settings = (group["ns_coefficients"], group["ns_steps"], group["eps"])
    if not isinstance(update, DTensor):
        return orthogonalized(update, *settings)
    mesh, placements = update.device_mesh, update.placements
    by_matrix = [place if isinstance(place, Shard) and place.dim == 0 else Replicate() for place in placements]
    local = orthogonalized(update.redistribute(placements=by_matrix).to_local(), *settings)
    whole = DTensor.from_local(
        local, mesh, by_matrix, run_check=False, shape=update.shape, stride=update.stride()
    )  # the shape is said, for ranks may have matrices in unequal numbers
    return whole.redistribute(placements=placements)


def _lr_ratio(adjust_lr_fn: str | None, rows: int, columns: int) -> float:
    """By what torch's Muon scales the rate of one matrix."""
    if adjust_lr_fn == "match_rms_adamw":
        return 0.2 * math.sqrt(max(rows, columns))
    return math.sqrt(max(1.0, rows / columns))


def orthogonalized(update: Tensor, coefficients: tuple[float, float, float], num_steps: int, eps: float) -> Tensor:
    """Each matrix of update (E, m, n) brought near to the closest matrix with orthonormal rows or columns.

    The quintic Newton-Schulz iteration of torch's Muon, in bfloat16, for many matrices at once.

    Args:
        update: On any device; E may be 0.
        coefficients: Of the iteration.
        num_steps: Iterations.
        eps: Least norm by which a matrix is divided.

    Returns:
        (E, m, n), in the dtype of update.
    """
    at_once = max(1, _VALUES_AT_ONCE // max(1, math.prod(update.shape[-2:])))
    parts = [_iterated(part.bfloat16(), coefficients, num_steps, eps) for part in update.split(at_once)]
    return torch.cat(parts).to(update.dtype)


def _iterated(x: Tensor, coefficients: tuple[float, float, float], num_steps: int, eps: float) -> Tensor:
    a, b, c = coefficients
    is_tall = x.shape[-2] > x.shape[-1]
    x = x.mT if is_tall else x
    x = x / torch.linalg.matrix_norm(x, keepdim=True).clamp(min=eps)
    for _ in range(num_steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if is_tall else x
