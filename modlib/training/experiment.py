"""The settings of a run: what a gin file binds under `train`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from modlib.components import component
from modlib.runtime.errors import ConfigError

if TYPE_CHECKING:
    from modlib.data.batches.collate import Collator
    from modlib.data.datasets.dataset import Dataset
    from modlib.nn.losses import Loss
    from modlib.optim.schedules import Scheduler
    from modlib.training.objective import Objective
else:  # the checks of a config read these annotations, and a config error must not wait for torch
    Collator = Dataset = Loss = Objective = Scheduler = Any


@component(
    "run",
    "train",
    name="train",
    not_science=("log_every", "checkpointing", "subscribers", "sample", "hang_limit_s"),
    as_before={"objective": None},
)
@dataclass(frozen=True, kw_only=True)
class Experiment:
    """One whole training run: the components it is made of and its few numbers.

    Components are given uncalled (`train.model = @GPT2`); training calls each once, in order, with what only the
    running process knows.

    Args:
        model: Returns the model; its `vocab_size` and `seq_len` are checked against the data.
        initialization: Returns a callable (model, seed) that writes the initial weights in place. None: the model
            brings all of them itself, from a checkpoint or a pretrained model.
        loss: Returns a callable (outputs of the model, targets (B, T)) -> sum of the loss over unmasked targets.
        objective: Called with the loss; returns a callable (model, (inputs, targets)) -> (sum, count, metrics). A step
            minimises the sum of all micro-batches over their count, logged as `train/loss`; evaluators go on with
            `loss`. None: `CausalObjective`, the loss of the model's outputs.
        parameter_groups: Returns a callable (model) -> groups of the optimizer.
        optimizer: Called with the groups.
        scheduler: Called with the optimizer; stepped once per optimizer step.
        gradient_clipper: Called with the model; clips before each update. None: measure the norm, do not clip.
        dataset: Returns the training windows.
        sampler: Called with the number of windows; fixes their global order.
        collate: Returns the function that makes (inputs, targets) from windows.
        batch_sampler: Passed to the data loader, which calls it with the sampler and this rank's share; cuts the order
            into steps. None: `BatchSampler`.
        data_loader: Called with dataset, sampler, collate, batch_sampler and this rank's share.
        evaluators: Evaluators, each with its own data, name and steps.
        checkpointing: When to save and what to keep.
        subscribers: Where metrics go; each called with the run folder, on rank 0.
        seed: Seed of initial weights, sample order and dropout.
        num_steps: Optimizer steps in the whole run.
        micro_batch_size: Sequences per rank per forward.
        grad_accum_steps: Micro-batches per rank per optimizer step.
        global_batch_size: Sequences per optimizer step over all ranks. When given, grad_accum_steps is derived from
            it for the world size at hand; None means micro_batch_size x grad_accum_steps x world size.
        log_every: Steps between two training log lines.
        precision: "bfloat16" computes in bfloat16 over float32 weights and optimizer state.
        compile: torch.compile of the blocks and the loss. "auto": on a GPU; on a CPU when a C++ compiler is there and
            the run is long enough to earn back the compilation.
        hang_limit_s: Seconds that a micro-batch may take, and loading the data of a step; the first step, a start, a
            checkpoint, or an evaluation between two of its batches six times as many. Then every rank writes its
            stacks into the run folder and ends, with exit code 6. None: no limit.
        sample: Returns a callable (model, tokenizer) -> text, called after the last step; the text is logged. None: no
            sample.
    """

    model: Callable[[], Any]
    initialization: Callable[[], Any] | None = None
    loss: Callable[[], Loss]
    objective: Callable[[Loss], Objective] | None = None
    parameter_groups: Callable[[], Any]
    optimizer: Callable[[Any], Any]
    scheduler: Callable[[Any], Scheduler]
    gradient_clipper: Callable[[Any], Any] | None = None
    dataset: Callable[[], Dataset]
    sampler: Callable[..., Any]
    batch_sampler: Callable[..., Any] | None = None
    collate: Callable[[], Collator]
    data_loader: Callable[..., Any]
    evaluators: Sequence[Any] = ()
    checkpointing: Callable[[], Any]
    subscribers: Sequence[Callable[..., Any]] = ()
    seed: int
    num_steps: int
    micro_batch_size: int
    grad_accum_steps: int = 1
    global_batch_size: int | None = None
    log_every: int = 10
    precision: Literal["float32", "bfloat16"] = "float32"
    compile: bool | Literal["auto"] = "auto"
    hang_limit_s: float | None = 600.0
    sample: Callable[[], Any] | None = None

    def __post_init__(self) -> None:
        problems = [
            f"{name} ({getattr(self, name)}) must be at least {least}; set it to {least} or more"
            for name, least in (
                ("seed", 0),
                ("num_steps", 1),
                ("micro_batch_size", 1),
                ("grad_accum_steps", 1),
                ("log_every", 1),
            )
            if getattr(self, name) < least
        ]
        if self.hang_limit_s is not None and not 0 < self.hang_limit_s < math.inf:
            problems.append(
                f"hang_limit_s ({self.hang_limit_s}) must be above 0; set it to seconds, or to None for no limit"
            )
        if problems:
            raise ConfigError(problems)
