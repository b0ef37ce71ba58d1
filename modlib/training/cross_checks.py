"""Do the parts of a run fit each other? Asked before anything starts."""

from __future__ import annotations

import inspect
from collections import Counter
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from modlib.components import CATALOGUE, component_name
from modlib.config import Config
from modlib.config.resolving import Setting
from modlib.config.values import format_value
from modlib.data.batches.batch import map_tensors
from modlib.data.batches.layout import BatchLayout
from modlib.data.batches.loader_workers import load_batch
from modlib.data.datasets.dataset import ChecksTokenizer, Dataset
from modlib.distributed.unit_checks import require_whole_weights
from modlib.models.adapter_checks import require_called_adapters
from modlib.models.weights import check_initialization
from modlib.nn.lora_layers import LoRALayer
from modlib.nn.model import Model
from modlib.nn.routing import RoutesTokens
from modlib.runtime.errors import ConfigError
from modlib.training.building import build, explained
from modlib.training.data_loading import build_loader, require_steps
from modlib.training.experiment import Experiment
from modlib.training.meta_answers import MetaAnswers
from modlib.training.objective import CausalObjective, Objective
from modlib.training.router_balance import RouterBalance

LEAST_LENGTHS = {
    ("ConstantLR", "total_iters"): 0,
    ("CosineAnnealingLR", "T_max"): 1,
    ("CyclicLR", "step_size_down"): 1,
    ("CyclicLR", "step_size_up"): 1,
    ("LinearLR", "total_iters"): 1,
    ("PolynomialLR", "total_iters"): 1,
    ("StepLR", "step_size"): 1,
}
"""In updates, of torch's schedules that do not look at them themselves."""


def check_data(model: Model, dataset: Dataset, layout: BatchLayout) -> None:
    """Refuse data that the model cannot take, before anything is trained on it.

    Raises:
        ConfigError: The model's window is shorter than the data's.
        DataError: Token ids beyond the vocabulary, or less data than one global batch.
    """
    if dataset.seq_len > model.seq_len:
        raise ConfigError(
            f"seq_len of the data ({dataset.seq_len}) must be at most seq_len of the model ({model.seq_len}); "
            "set both with SEQ_LEN"
        )
    dataset.check_vocabulary(model.vocab_size)
    layout.require_one_batch(len(dataset))


def check_parts(config: Config, experiment: Experiment, model: nn.Module) -> int:
    """Build now what a run calls late, to catch bad values before it starts.

    Returns:
        Parameters of the models that the objective calls and that are not trained.

    Raises:
        ConfigError: A component refused its parameters.
    """
    for choice in (experiment.checkpointing, experiment.sample):
        if choice is not None:
            build(config, choice)
    loss, frozen = build(config, experiment.loss), []
    if experiment.objective is not None:
        objective = build(config, experiment.objective, loss)
        if not isinstance(objective, Objective):
            name = component_name(experiment.objective)
            raise ConfigError(
                f"objective ({name}) must have a method count and a dict frozen, and take (model, batch); add them to "
                f"{name}: see docs/objectives.md"
            )
        if isinstance(objective, RouterBalance) and not (isinstance(model, RoutesTokens) and model.router_loss()):
            raise ConfigError(
                f"objective (RouterBalance) must have a model with a balance loss, and {type(model).__name__} asks for "
                "none; set output_router_logits = True in the config of a model with experts, or leave it out"
            )
        with torch.device("meta"):
            frozen = [build(config, one) for one in objective.frozen.values()]
    for part in frozen:
        build(config, check_initialization, part, None)
    for choice in experiment.subscribers:
        require_run_path(config, choice)
    initialization = build(config, experiment.initialization) if experiment.initialization else None
    build(config, check_initialization, model, initialization)
    check_takes_documents(config, model, "takes_document_ids")
    if experiment.gradient_clipper is not None:
        build(config, experiment.gradient_clipper, model)
    return sum(parameter.numel() for part in frozen for parameter in part.parameters())


def check_schedules(config: Config) -> None:
    """Refuse lengths of torch's schedules that torch divides by, or takes the wrong way round, in some later update.

    Raises:
        ConfigError: All of them, with the macros that they are computed from.
    """
    problems = []
    for one in config.settings:
        least = LEAST_LENGTHS.get((one.instance.name, one.parameter))
        if least is None or not isinstance(one.value, int | float) or one.value >= least:
            continue
        macros = config.program.macros_in(one.node) if one.node is not None else []
        values = [f"{name} ({format_value(config.program.value_of_macro(name))})" for name in macros]
        remedy = (
            f"it follows from {' and '.join(values)}: change one of them" if values else f"set it to {least} or more"
        )
        text = f"{one.parameter} ({one.text}) must be at least {least}; {remedy}"
        problems.append(config.explain(one.instance.name, text))
    if problems:
        raise ConfigError(problems)


def check_sharding(
    config: Config, experiment: Experiment, model: Any, dataset: Dataset | None, world_size: int
) -> None:
    """Refuse sharding units that hold weights of others; those that a user named on one process, too.

    Args:
        config: Says where the units were set.
        experiment: Its loss is computed on one window, since a loss may read weights.
        model: On meta.
        dataset: None where there is none yet: a window of zeros does.
        world_size: Ranks of the run.

    Raises:
        ConfigError: Names the class and the parameter.
    """
    named = getattr(model, "sharding", None)
    if world_size == 1 and (named is None or named.units is None):
        return  # nothing is sharded, and nobody chose how

    with explained(config, "FSDPModel"):
        require_whole_weights(model, partial(_forward_on_meta, config, experiment, model, dataset))


def check_adapters(config: Config, experiment: Experiment, model: Any, dataset: Dataset | None) -> None:
    """Refuse adapters of layers that the model does not call.

    Args:
        config: Says where the adapters were set.
        experiment: As for check_sharding.
        model: On meta.
        dataset: As for check_sharding.

    Raises:
        ConfigError: Names the layers.
    """
    if any(isinstance(module, LoRALayer) for module in model.modules()):
        with explained(config, "LoRAModel"):
            require_called_adapters(model, partial(_forward_on_meta, config, experiment, model, dataset))


def _forward_on_meta(config: Config, experiment: Experiment, model: Any, dataset: Dataset | None) -> bool:
    """The loss of one window, of which only the course is real; says whether that did not hang on any value."""
    inputs: Any = torch.zeros(1, model.seq_len, dtype=torch.int64)
    targets = inputs
    if dataset is not None:
        inputs, targets = load_batch(dataset, build(config, experiment.collate), np.zeros(1, dtype=np.int64))
    inputs = map_tensors(lambda tensor: tensor.to("meta"), inputs)
    with torch.no_grad(), MetaAnswers() as answers:
        CausalObjective(build(config, experiment.loss))(model, (inputs, targets.to("meta")))
    return answers.asked == 0


def check_takes_documents(config: Config, part: Any, attribute: str) -> None:
    """Refuse data with documents kept apart and a model or collator that would mix them up.

    Args:
        config: Says whether a dataset of the run keeps them apart.
        part: The model or the collator.
        attribute: True in a part that can.

    Raises:
        ConfigError: It cannot; with the setting and its origin.
    """
    if getattr(part, attribute, False):
        return
    for setting in documents_apart(config):
        text = (
            f"{setting.name} (True) must be False with {type(part).__name__}, which takes no document_ids; leave "
            "it out, or use a model and a collator that do: GPT2, LMCollator"
        )
        raise ConfigError(config.explain(setting.instance.name, text))


def documents_apart(config: Config) -> list[Setting]:
    """What makes datasets of the run keep their documents apart."""
    return [one for one in config.settings if one.parameter == "intra_document_masking" and one.value is True]


def require_run_path(config: Config, subscriber: Any) -> None:
    """Refuse a component that is no subscriber: one is called with the run folder, which is not there yet.

    Raises:
        ConfigError: It cannot be called so.
    """
    name = component_name(subscriber)
    target = CATALOGUE[name].target if name in CATALOGUE else subscriber
    parameters = inspect.signature(target).parameters if target is not None else {}
    if "run_path" not in parameters and not any(one.kind is one.VAR_KEYWORD for one in parameters.values()):
        problem = f"{name}: a subscriber must take run_path, the run folder; take it out of train.subscribers"
        raise ConfigError(config.explain(name, problem))


def check_loading(config: Config, experiment: Experiment, dataset: Any, layout: BatchLayout) -> None:
    """Build the first rank's data loader, without reading, to see what it refuses.

    Raises:
        ConfigError: A wrong value in it, or it ends before the run does.
    """
    call = partial(build, config)
    collate = call(experiment.collate)
    check_takes_documents(config, collate, "hands_on_document_ids")
    loader = build_loader(experiment, dataset, collate, layout, 0, call)
    with explained(config, component_name(experiment.data_loader), "train"):
        require_steps(loader, experiment.num_steps)


def check_evaluation_data(model: Model, dataset: Dataset, held_out: Dataset) -> None:
    """Refuse held-out data of another tokenizer than the training data's, or with ids that the model does not have.

    Raises:
        DataError: Either of them.
    """
    if dataset.tokenizer_fingerprint and isinstance(held_out, ChecksTokenizer):
        held_out.check_tokenizer(dataset.tokenizer_fingerprint)
    held_out.check_vocabulary(model.vocab_size)


def check_subscribers(config: Config, experiment: Experiment) -> None:
    """Refuse two subscribers that would write the same files.

    Raises:
        ConfigError: One that has files of its own in the run folder is there more than once.
    """
    for name, count in Counter(map(component_name, experiment.subscribers)).items():
        if count > 1 and getattr(CATALOGUE[name].target, "once_per_run", False):
            text = f"subscribers ({name}, {count} times) must name {name} once, since it writes files of the run folder"
            raise ConfigError(config.explain("train", f"{text}; leave the others out"))
