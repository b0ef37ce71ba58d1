"""What a run will do, computed before it does it: on the meta device, for any world size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from modlib.components import component_name
from modlib.config import Config
from modlib.data.batches.layout import batch_layout
from modlib.distributed.fsdp import COMPUTE_DTYPES
from modlib.models.exportable import export_note
from modlib.models.partial_training import partial_work
from modlib.nn.document_mask import document_mask_bytes
from modlib.nn.model import CountsFlops, CountsParameters, EstimatesActivations, HasPlanNotes, ListsParameters
from modlib.optim.roles import num_non_embedding
from modlib.runtime.hardware import Peak, peak_flops
from modlib.runtime.run_folder import versions
from modlib.runtime.secrets import masked
from modlib.tracking.run_plan import Plan
from modlib.training.building import build, explained
from modlib.training.cross_checks import (
    check_adapters,
    check_data,
    check_evaluation_data,
    check_loading,
    check_parts,
    check_sharding,
    check_subscribers,
    documents_apart,
)
from modlib.training.evaluation import Evaluator
from modlib.training.experiment import Experiment
from modlib.training.held_out import HeldOut
from modlib.training.planned_data import describe_data
from modlib.training.probe import Probe


def make_plan(
    experiment: Experiment,
    config: Config,
    world_size: int,
    dataset: Any = None,
    evaluators: Sequence[Evaluator] = (),
    peak: Peak | None = None,
) -> Plan:
    """Check the parts against each other and compute what the run will cost.

    The model is built on the meta device: no memory is taken, whatever its size.

    Args:
        experiment: The settings.
        config: Where they come from.
        world_size: Ranks of the run that is planned; need not be this process's world.
        dataset: The training data; None when it is not made yet.
        evaluators: Evaluators whose data is checked too.
        peak: What one rank's device can do; None leaves time and MFU out.

    Raises:
        ConfigError: Parts that do not fit, with where they were set.
        DataError: Data that does not fit the model.
    """
    check_subscribers(config, experiment)
    with explained(config, "train"):
        layout = batch_layout(
            experiment.micro_batch_size, experiment.grad_accum_steps, experiment.global_batch_size, world_size
        )
    with torch.device("meta"):
        model = build(config, experiment.model)
    seq_len = model.seq_len if dataset is None else dataset.seq_len
    frozen = check_parts(config, experiment, model)
    if dataset is not None:
        with explained(config, component_name(experiment.dataset), component_name(experiment.model)):
            check_data(model, dataset, layout)
        check_loading(config, experiment, dataset, layout)
        for evaluator in evaluators:
            check_evaluation_data(model, dataset, evaluator.dataset)
            if isinstance(evaluator, HeldOut):
                evaluator.check_model(model)
    check_sharding(config, experiment, model, dataset, world_size)
    check_adapters(config, experiment, model, dataset)
    probe = Probe(config, experiment, model)
    total = sum(parameter.numel() for parameter in model.parameters())
    trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    state_bytes = probe.state_bytes()
    bytes_per_value = COMPUTE_DTYPES[experiment.precision].itemsize
    sizes = (layout.micro_batch_size, seq_len, bytes_per_value)
    activations = model.activation_bytes(*sizes) if isinstance(model, EstimatesActivations) else 0
    if documents_apart(config) and not (torch.cuda.is_available() and experiment.compile):
        activations += document_mask_bytes(*sizes)  # compiled on a GPU, the mask is one of blocks
    notes = (
        [] if isinstance(model, EstimatesActivations) else ["memory is without activations: the model estimates none"]
    )
    notes += model.plan_notes() if isinstance(model, HasPlanNotes) else []
    if (note := export_note(model)) is not None:
        notes.append(note)
    if peak and peak.flops is None:
        notes.append(f"no estimate of time, and no MFU: {peak.source}")
    return Plan(
        config_hash=config.hash,
        resolved=masked("", config.resolved),
        num_steps=experiment.num_steps,
        tokens_per_step=layout.global_batch_size * seq_len,
        world_size=world_size,
        global_batch_size=layout.global_batch_size,
        micro_batch_size=layout.micro_batch_size,
        grad_accum_steps=layout.grad_accum_steps,
        seq_len=seq_len,
        parameters=_count(model, total, trainable),
        parameter_table=model.parameter_table() if isinstance(model, ListsParameters) else [("model", total)],
        flops_per_token=flops_per_token(model, seq_len),
        memory_per_rank_bytes={
            "parameters": 4 * total // world_size,
            "gradients": 4 * trainable // world_size,
            "optimizer": state_bytes // world_size,
            "activations": activations,
        }
        | ({"frozen": 4 * frozen // world_size} if frozen else {}),
        checkpoint_bytes=4 * (trainable if getattr(model, "adapter_only_checkpoints", False) else total) + state_bytes,
        flops_convention="partly" if trainable < total else "palm" if isinstance(model, CountsFlops) else "parameters",
        learning_rates=probe.learning_rates(experiment.num_steps),
        roles=probe.roles(),
        dataset=describe_data(config, dataset),
        precision=experiment.precision,
        device=torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        num_threads=torch.get_num_threads(),
        peak_flops=peak.flops if peak else None,
        peak_source=peak.source if peak else "",
        versions=versions(),
        notes=notes,
    )


def device_peak(experiment: Experiment, num_threads: int | None = None, *, remember: bool) -> Peak:
    """What one rank's device can do in the run's precision: its datasheet, or a short measurement.

    Args:
        experiment: The settings.
        num_threads: CPU threads of one rank; default torch.get_num_threads().
        remember: Whether a measurement is kept for the next start.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return peak_flops(device, COMPUTE_DTYPES[experiment.precision], num_threads, remember=remember)


def flops_per_token(model: Any, seq_len: int) -> float:
    """Forward and backward of one token: the model's own count, else six per parameter that is not only looked up.

    Of a partly frozen model only what backward has to do is counted, see partial_work.
    """
    if isinstance(model, CountsFlops):
        return float(model.flops_per_token(seq_len))
    used = {
        id(parameter)
        for module in model.modules()
        if not isinstance(module, nn.Embedding | nn.EmbeddingBag)
        for parameter in module.parameters(recurse=False)
    }
    multiplied = {name: p.numel() for name, p in model.named_parameters() if id(p) in used}
    partly = partial_work(model, multiplied)
    if partly is None:
        return 6.0 * sum(multiplied.values())
    return 2.0 * (partly.forward + partly.weight_gradients + partly.input_gradients)


def _count(model: Any, total: int, trainable: int) -> dict[str, int]:
    if isinstance(model, CountsParameters):
        return dict(model.num_parameters())
    return {"total": total, "trainable": trainable, "non_embedding": num_non_embedding(model)}
