"""The parts of a run in memory: built once, in the one order that works."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh

from modlib.data.batches.batch import Inputs
from modlib.distributed.clipping import GradientClipper
from modlib.distributed.compilation import compile_blocks, should_compile, start_compile_workers
from modlib.distributed.fsdp import COMPUTE_DTYPES, shard
from modlib.distributed.process_group import World
from modlib.models.weights import initialize
from modlib.nn.losses import FromHidden, Loss
from modlib.optim.roles import keep_marks
from modlib.optim.schedules import Scheduler
from modlib.training.experiment import Experiment


@dataclass
class Parts:
    """Everything one update touches.

    Args:
        model: The model; sharded when the world is larger than one.
        loss: The loss component, called with (outputs, targets).
        forward_loss: (inputs, targets) -> summed loss, in the run's precision, compiled where asked.
        optimizer: The optimizer over the model's parameter groups.
        scheduler: The learning-rate schedule.
        clipper: Norm and clipping of gradients.
        world: This rank's place.
        compiled: Whether torch.compile is in use.
        precision: "float32" or "bfloat16".
        guard_on_device: Whether the optimizer skips an update with non-finite gradients by itself.
        num_skipped: Updates skipped so, on the device; None before the first step.
        alive: Called for each tensor that goes to the device: whoever brings batches there makes progress.
    """

    model: nn.Module
    loss: Loss
    forward_loss: Callable[[Inputs, Tensor], Tensor]
    optimizer: torch.optim.Optimizer
    scheduler: Scheduler
    clipper: GradientClipper
    world: World
    compiled: bool
    precision: str
    guard_on_device: bool = False
    num_skipped: Tensor | None = None
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
    with torch.device("meta"):
        model = experiment.model()
    keep_marks(model)
    if world.size > 1:
        if compiled:
            compile_blocks(getattr(model, "blocks", [model]))
        mesh = init_device_mesh(world.device.type, (world.size,), mesh_dim_names=("dp_shard",))
        shard(model, mesh, experiment.precision)
    model.to_empty(device=world.device)
    initialize(model, experiment.initialization() if experiment.initialization else None, experiment.seed)
    model.train()

    optimizer = experiment.optimizer(experiment.parameter_groups()(model))
    if hasattr(optimizer, "restore_state"):  # one that goes on from another run's state, by parameter name
        optimizer.restore_state(model)
    return assemble(
        model,
        experiment.loss(),
        optimizer,
        experiment.scheduler(optimizer),
        experiment.gradient_clipper,
        world,
        experiment.precision,
        compiled,
    )


def assemble(
    model: nn.Module,
    loss: Loss,
    optimizer: torch.optim.Optimizer,
    scheduler: Scheduler,
    gradient_clipper: Callable[..., Any] | None,
    world: World,
    precision: str,
    compiled: bool,
) -> Parts:
    """Put built parts together; a model that is not sharded is compiled whole, with its loss."""

    def forward_loss(inputs: Inputs, targets: Tensor) -> Tensor:
        return loss_of(model, loss, inputs, targets, precision_context(precision, world))

    return Parts(
        model=model,
        loss=loss,
        forward_loss=torch.compile(forward_loss, dynamic=False) if compiled and world.size == 1 else forward_loss,
        optimizer=optimizer,
        scheduler=scheduler,
        clipper=(gradient_clipper or _norm_only)(model),
        world=world,
        compiled=compiled,
        precision=precision,
        guard_on_device=world.device.type == "cuda" and getattr(optimizer, "_step_supports_amp_scaling", False),
    )


def loss_of(
    model: nn.Module, loss: Loss, inputs: Inputs, targets: Tensor, in_precision: AbstractContextManager[Any]
) -> Tensor:
    """The summed loss of one micro-batch; a loss that never holds all logits is computed inside the model."""
    with in_precision:
        if isinstance(loss, FromHidden):
            return cast(Tensor, model(inputs, head=lambda hidden, weight: loss.of_hidden(hidden, weight, targets)))
        outputs = model(inputs)
    return cast(Tensor, loss(outputs, targets))


def _norm_only(model: nn.Module) -> GradientClipper:
    return GradientClipper(model, max_norm=None)


def sum_over_ranks(values: Tensor, world: World) -> Tensor:
    """Sum a tensor over all ranks, in place."""
    if world.size > 1:
        dist.all_reduce(values)
    return values
