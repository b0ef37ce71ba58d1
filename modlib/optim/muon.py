"""Muon for the matrices inside a network and AdamW for everything else, as one optimizer."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Replicate
from torch.optim import AdamW, Muon, Optimizer

from modlib.components import component
from modlib.optim.groups import DecayGroups, compiled_patterns, require_matches
from modlib.optim.roles import Role, parameter_roles, role_of
from modlib.optim.stacked_muon import StackedMuon
from modlib.runtime.errors import ConfigError, require_choices

MUON, STACKED, ADAMW = "muon", "muon_of_each", "adam_w"
AdjustLr = Literal["original", "match_rms_adamw"]
ALGORITHMS = {MUON: "Muon", STACKED: "Muon of each matrix", ADAMW: "AdamW"}
"""What a group may say, and how people call it."""


@component("parameter_groups", "muon")
class MuonGroups:
    """Hidden matrices for Muon; embeddings, the output head, routers, norms, biases and all else for AdamW.

    Each group says so with "algorithm": "muon", "muon_of_each" for experts in one parameter of three axes, whose
    matrices are updated one by one, or "adam_w". MuonWithAdamW reads it and other optimizers ignore it. What a
    parameter is for decides (see modlib/optim/roles.py): Muon gets the matrices of linear maps and of experts, unless
    they have one row or one column, or a pattern finds their name. Decay is as in DecayGroups.

    Args:
        adamw_patterns: Regular expressions searched in parameter names, for more of what AdamW takes; each must be
            found at least once.
        decay_embeddings: See DecayGroups.
        weight_decay_excluded: See DecayGroups.

    Raises:
        ConfigError: A pattern that is not a regular expression or matches no parameter; nothing to train.

    Source: Jordan et al. 2024, Muon: An optimizer for hidden layers in neural networks.
    """

    def __init__(
        self,
        adamw_patterns: Sequence[str] = (),
        decay_embeddings: bool = True,
        weight_decay_excluded: Sequence[str] = (),
    ) -> None:
        self.patterns = compiled_patterns("adamw_patterns", adamw_patterns)
        self.decay = DecayGroups(decay_embeddings, weight_decay_excluded)

    def __call__(self, model: nn.Module) -> list[dict[str, Any]]:
        """Parameter groups for MuonWithAdamW; those without parameters are left out.

        Args:
            model: Plain or sharded by FSDP2; shapes are those of the whole parameter.
        """
        require_matches("adamw_patterns", self.patterns, model)
        roles = parameter_roles(model)
        chosen = {
            id(parameter): ADAMW if any(map(_finds(name), self.patterns)) else _algorithm(roles[name], parameter)
            for name, parameter in model.named_parameters()
        }
        decay = self.decay(model)
        groups = [
            {**group, "params": [p for p in group["params"] if chosen[id(p)] == algorithm], "algorithm": algorithm}
            for algorithm in ALGORITHMS
            for group in decay
        ]
        return [group for group in groups if group["params"]]


def _algorithm(role: Role, parameter: Tensor) -> str:
    if min(parameter.shape[-2:], default=0) > 1:
        return {"matrix": MUON, "experts": STACKED}.get(role, ADAMW)
    return ADAMW


def _finds(name: str) -> Callable[[re.Pattern[str]], Any]:
    return lambda pattern: pattern.search(name)


@component("optimizer", "muon_with_adam_w", runtime_args=("params",))
class MuonWithAdamW(Optimizer):
    """torch's Muon for hidden matrices and torch's AdamW for the rest, as one optimizer with one state.

    Use it with `train.parameter_groups = @MuonGroups`. A schedule scales every group's own lr by the same factor. Of a
    matrix that FSDP2 shards, each rank keeps its part of the momentum; the update is gathered, one matrix at a time,
    and orthogonalised whole on every rank, so the numbers are those of a single process.

    Args:
        params: Groups of MuonGroups. Of plain parameters the shape is all there is to go by, and the name where it is
            given: matrices to Muon, the rest to AdamW.
        lr: Learning rate of Muon's groups, at least 0.
        adamw_lr: Learning rate of AdamW's groups; None for lr, which fits adjust_lr_fn="match_rms_adamw".
        weight_decay: Decoupled weight decay of all groups that do not say otherwise.
        momentum: Of Muon, in [0, 1).
        nesterov: Whether Muon looks ahead.
        ns_steps: Newton-Schulz iterations, below 100.
        adjust_lr_fn: "match_rms_adamw" gives Muon's updates the size of AdamW's (lr * 0.2 * sqrt(larger side)), so an
            lr found for AdamW can stay; "original" scales by sqrt(max(1, rows / columns)) and wants an lr near 0.02.
        betas: Of AdamW.
        eps: Of AdamW.
        fused: Whether AdamW updates in one kernel; None lets torch choose.

    Raises:
        ConfigError: Groups that do not say which algorithm they are for, or none for Muon.
        ValueError: A value outside its range, from torch.

    Source: Jordan et al. 2024, Muon; Liu et al. 2025, Muon is Scalable for LLM Training, section 2.2.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        *,
        adamw_lr: float | None = None,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_steps: int = 5,
        adjust_lr_fn: AdjustLr = "match_rms_adamw",
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        fused: bool | None = None,
    ) -> None:
        require_choices(adjust_lr_fn=(adjust_lr_fn, AdjustLr))
        groups = _marked(list(params))
        of = {name: [group for group in groups if group["algorithm"] == name] for name in ALGORITHMS}
        if not of[MUON] and not of[STACKED]:
            raise ConfigError("groups for Muon (none) must hold at least one matrix; use AdamW for a model without")
        muon = Muon(
            of[MUON] or [{"params": []}],
            lr=lr,
            weight_decay=weight_decay,
            momentum=momentum,
            nesterov=nesterov,
            ns_steps=ns_steps,
            adjust_lr_fn=adjust_lr_fn,
        )
        self._inner: dict[str, Optimizer] = {MUON: muon} if of[MUON] else {}
        if of[STACKED]:
            self._inner[STACKED] = StackedMuon(of[STACKED], muon.defaults)
        if of[ADAMW]:
            adamw_lr = lr if adamw_lr is None else adamw_lr
            self._inner[ADAMW] = AdamW(
                of[ADAMW], lr=adamw_lr, betas=betas, eps=eps, weight_decay=weight_decay, fused=fused
            )
        # torch's constructors have completed the groups with their settings
        filled = [group for inner in self._inner.values() for group in inner.param_groups]
        super().__init__(filled, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Update all parameters that have gradients."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for algorithm, inner in self._inner.items():
            # loading a checkpoint may have replaced the state and the groups of this optimizer
            inner.state = self.state
            inner.param_groups = [group for group in self.param_groups if group["algorithm"] == algorithm]
            if algorithm == MUON:
                with _sharded_grads_set_aside(self) as sharded:
                    inner.step()
                for parameter, group in sharded:
                    _sharded_muon(parameter, group, self.state[parameter])
            else:
                inner.step()
        return loss


@contextmanager
def _sharded_grads_set_aside(optimizer: Optimizer) -> Iterator[list[tuple[DTensor, dict[str, Any]]]]:
    """Hide the gradients of Muon's sharded matrices, and name these with their groups."""
    sharded: list[tuple[DTensor, dict[str, Any]]] = [
        (parameter, group)
        for group in optimizer.param_groups
        if group["algorithm"] == MUON
        for parameter in group["params"]
        if isinstance(parameter, DTensor) and parameter.grad is not None
    ]
    grads = [parameter.grad for parameter, _ in sharded]
    for parameter, _ in sharded:
        parameter.grad = None
    try:
        yield sharded
    finally:
        for (parameter, _), grad in zip(sharded, grads, strict=True):
            parameter.grad = grad


def _sharded_muon(parameter: DTensor, group: dict[str, Any], state: dict[str, Any]) -> None:
    """torch's Muon for one sharded matrix.

    On sharded operands its bfloat16 products are summed in another order, which the iteration magnifies. So momentum
    and weight decay stay on the shards, and a Muon without either turns the whole update into a step.
    """
    grad = parameter.grad
    assert grad is not None
    momentum = state.setdefault("momentum_buffer", torch.zeros_like(grad))
    momentum.lerp_(grad, 1 - group["momentum"])
    update = grad.lerp(momentum, group["momentum"]) if group["nesterov"] else momentum
    whole = nn.Parameter(torch.zeros(parameter.shape, dtype=parameter.dtype, device=parameter.device))
    whole.grad = cast(DTensor, update).full_tensor()
    settings = {name: group[name] for name in ("lr", "ns_coefficients", "eps", "ns_steps", "adjust_lr_fn")}
    Muon([whole], weight_decay=0.0, momentum=0.0, nesterov=False, **settings).step()
    mesh = parameter.device_mesh
    step = DTensor.from_local(whole.detach(), mesh, [Replicate()] * mesh.ndim, run_check=False)
    parameter.mul_(1 - group["lr"] * group["weight_decay"]).add_(step.redistribute(placements=parameter.placements))


def _marked(params: list[Any]) -> list[dict[str, Any]]:
    """Groups that all say which algorithm they are for."""
    if not any(isinstance(group, dict) for group in params):
        named = [one if isinstance(one, tuple) else ("weight", one) for one in params]
        chosen: dict[str, list[Any]] = {MUON: [], STACKED: [], ADAMW: []}
        for name, parameter in named:
            chosen[_algorithm(role_of(parameter, name.rpartition(".")[2]), parameter)].append(parameter)
        return [{"params": held, "algorithm": algorithm} for algorithm, held in chosen.items() if held]
    wrong = [index for index, group in enumerate(params) if group.get("algorithm") not in ALGORITHMS]
    if wrong:
        raise ConfigError(
            f"algorithm of parameter group {wrong[0]} ({params[wrong[0]].get('algorithm')!r}) must be {MUON!r}, "
            f"{STACKED!r} or {ADAMW!r}; set train.parameter_groups = @MuonGroups, which keeps embeddings and the head "
            "from Muon"
        )
    return [dict(group) for group in params]
