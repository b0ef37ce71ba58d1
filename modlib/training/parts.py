"""The parts of a run in memory: built once, in the one order that works."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from modlib.data.batches.batch import Batch
from modlib.distributed.clipping import GradientClipper
from modlib.distributed.compilation import compile_blocks, should_compile, start_compile_workers
from modlib.distributed.fsdp import COMPUTE_DTYPES, shard
from modlib.distributed.process_group import World
from modlib.models.lora import adapters
from modlib.models.weights import initialize
from modlib.nn.lora_layers import LoRALayer
from modlib.nn.losses import Loss
from modlib.nn.routing import RoutesTokens
from modlib.optim.roles import keep_marks
from modlib.optim.schedules import Scheduler
from modlib.training.experiment import Experiment
from modlib.training.objective import CausalObjective, Forward, Objective, SeesGlobalBatch, Value
from modlib.training.router_balance import RouterBalance


@dataclass
class Parts:
    """Everything one update touches.

    Args:
        model: The model; sharded when the world is larger than one.
        loss: The loss component, called with (outputs, targets).
        objective: What a step minimises.
        look: Where the objective must know the whole global batch before a step: called with this rank's micro-batches
            on the device, their number and the divisor.
        forward: A micro-batch on the device -> the objective's value, in the run's precision, compiled where asked.
        optimizer: The optimizer over the model's parameter groups.
        scheduler: The learning-rate schedule.
        clipper: Norm and clipping of gradients.
        world: This rank's place.
        compiled: Whether torch.compile is in use.
        precision: "float32" or "bfloat16".
        guard_on_device: Whether the optimizer skips an update with non-finite gradients by itself.
        num_skipped: Updates skipped so, on the device; None before the first step.
        frozen: Models that the objective calls and that are not trained; no optimizer or checkpoint has them.
        unproven: Adapters by name, until a backward pass was seen to reach them.
        alive: Called for each tensor that goes to the device: whoever brings batches there makes progress.
    """

    model: nn.Module
    loss: Loss
    objective: Objective
    look: Callable[[Iterator[Batch], int, Tensor], None] | None
    forward: Callable[[Batch], Value]
    optimizer: torch.optim.Optimizer
    scheduler: Scheduler
    clipper: GradientClipper
    world: World
    compiled: bool
    precision: str
    guard_on_device: bool = False
    num_skipped: Tensor | None = None
    unproven: dict[str, LoRALayer] = field(default_factory=dict)
    frozen: Mapping[str, nn.Module] = field(default_factory=dict)
    alive: Callable[[], None] = lambda: None

    def in_precision(self) -> AbstractContextManager[Any]:
        """The context in which the model computes in the run's precision."""
        return precision_context(self.precision, self.world)

    def to_device(self, tensor: Tensor) -> Tensor:
        """The tensor on this rank's device, copied while the host goes on where it is page-locked."""
        self.alive()
        return tensor.to(self.world.device, non_blocking=True)

    @property
    def learning_rate(self) -> float:
        """Learning rate of the next update, of the first parameter group."""
        return float(self.optimizer.param_groups[0]["lr"])


def precision_context(precision: str, world: World) -> AbstractContextManager[Any]:
    """Autocast for an unsharded bfloat16 model; FSDP casts by itself."""
    if precision == "float32" or world.size > 1:
        return nullcontext()
    return torch.autocast(world.device.type, dtype=COMPUTE_DTYPES[precision])


def build_parts(experiment: Experiment, world: World, total_flops: float) -> Parts:
    """Model on meta, compile, shard, real memory, initial weights; then optimizer and schedule.

    Args:
        experiment: The settings.
        world: This rank's place.
        total_flops: Work of the whole run on one rank; decides whether compiling pays.
    """
    compiled = should_compile(experiment.compile, world.device, total_flops)
    if compiled:
        start_compile_workers()
    mesh = None
    if world.size > 1:
        mesh = init_device_mesh(world.device.type, (world.size,), mesh_dim_names=("dp_shard",))
    with torch.device("meta"):
        model = experiment.model()
    keep_marks(model)
    if mesh is not None:
        if compiled:
            compile_blocks(getattr(model, "blocks", [model]))
        shard(model, mesh, experiment.precision)
    model.to_empty(device=world.device)
    initialize(model, experiment.initialization() if experiment.initialization else None, experiment.seed)
    model.train()

    optimizer = experiment.optimizer(experiment.parameter_groups()(model))
    if hasattr(optimizer, "restore_state"):  # one that goes on from another run's state, by parameter name
        optimizer.restore_state(model)
    loss = experiment.loss()
    objective = (experiment.objective or CausalObjective)(loss)
    frozen = {
        name: _build_frozen(choice, mesh, world, experiment.precision, experiment.seed)
        for name, choice in objective.frozen.items()
    }
    return assemble(
        model,
        loss,
        optimizer,
        experiment.scheduler(optimizer),
        experiment.gradient_clipper,
        world,
        experiment.precision,
        compiled,
        objective,
        frozen,
    )


def _build_frozen(
    choice: Callable[[], nn.Module], mesh: DeviceMesh | None, world: World, precision: str, seed: int
) -> nn.Module:
    """A model that is not trained, in the order of the one that is."""
    with torch.device("meta"):
        model = choice().requires_grad_(False)
    if mesh is not None:
        shard(model, mesh, precision)
    model.to_empty(device=world.device)
    initialize(model, None, seed)
    return model.requires_grad_(False).eval()


def assemble(
    model: nn.Module,
    loss: Loss,
    optimizer: torch.optim.Optimizer,
    scheduler: Scheduler,
    gradient_clipper: Callable[..., Any] | None,
    world: World,
    precision: str,
    compiled: bool,
    objective: Objective | None = None,
    frozen: Mapping[str, nn.Module] | None = None,
) -> Parts:
    """Put built parts together; a model that is not sharded is compiled whole, with its objective.

    Args:
        model: In memory, sharded where the world is larger than one; a balance loss that it has joins the objective.
        loss: Of the run.
        optimizer: Over the model's parameters.
        scheduler: Over the optimizer.
        gradient_clipper: Called with the model. None: measure the norm, do not clip.
        world: This rank's place.
        precision: "float32" or "bfloat16".
        compiled: Whether torch.compile is in use.
        objective: What a step minimises. None: CausalObjective of the loss.
        frozen: The models that the objective calls, built.
    """
    chosen = objective or CausalObjective(loss)
    for name, built in (frozen or {}).items():
        chosen.frozen[name] = torch.no_grad()(_in_precision(built, precision, world))
    router_loss = model.router_loss() if isinstance(model, RoutesTokens) else None
    if router_loss is not None:
        chosen = chosen if isinstance(chosen, RouterBalance) else _balanced(chosen, loss)
        chosen.bind(router_loss, partial(sum_over_ranks, world=world))
    called = _in_precision(model, precision, world)

    def forward(batch: Batch) -> Value:
        return chosen(called, batch)

    return Parts(
        model=model,
        loss=loss,
        objective=chosen,
        look=partial(chosen.look, called) if isinstance(chosen, SeesGlobalBatch) else None,
        forward=torch.compile(forward, dynamic=False) if compiled and world.size == 1 else forward,
        optimizer=optimizer,
        scheduler=scheduler,
        clipper=(gradient_clipper or _norm_only)(model),
        world=world,
        compiled=compiled,
        precision=precision,
        guard_on_device=world.device.type == "cuda" and getattr(optimizer, "_step_supports_amp_scaling", False),
        frozen=frozen or {},
        unproven=dict(adapters(model)),
    )


def _balanced(objective: Objective, loss: Loss) -> RouterBalance:
    return RouterBalance(loss, objective=lambda _: objective)


def _in_precision(model: nn.Module, precision: str, world: World) -> Forward:
    """The model's forward in the run's precision; what is done with its outputs is in theirs."""

    def forward(*args: Any, **kwargs: Any) -> Any:
        with precision_context(precision, world):
            return model(*args, **kwargs)

    return forward


def _norm_only(model: nn.Module) -> GradientClipper:
    return GradientClipper(model, max_norm=None)


def sum_over_ranks(values: Tensor, world: World) -> Tensor:
    """Sum a tensor over all ranks, in place."""
    if world.size > 1:
        dist.all_reduce(values)
    return values
