"""What a run will do, computed before it does it: on the meta device, for any world size."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from modlib.components import CATALOGUE, component_name, known_components
from modlib.config import Config
from modlib.data import corpus
from modlib.data.batch_sampler import require_one_batch
from modlib.distributed.fsdp import COMPUTE_DTYPES
from modlib.runtime.errors import ConfigError, ModlibError
from modlib.runtime.hardware import Peak, peak_flops
from modlib.runtime.run_folder import versions
from modlib.tracking.plan import Plan
from modlib.training.batches import BatchLayout, batch_layout
from modlib.training.evaluation import Evaluator
from modlib.training.experiment import Experiment
from modlib.training.loading import build_loader, require_steps

CURVE_POINTS = 200
MOST_SCHEDULE_STEPS = 100_000  # of a schedule without closed form, the curve shows no more


def build(config: Config, choice: Any, *args: Any, **kwargs: Any) -> Any:
    """Call a configured component; a wrong value in it becomes an error that says where the value was set.

    Raises:
        ConfigError: The component refused its parameters.
    """
    try:
        return choice(*args, **kwargs)
    except (ConfigError, ValueError, TypeError) as error:
        if isinstance(error, ModlibError) and not isinstance(error, ConfigError):
            raise
        name = component_name(choice)
        problems = error.problems if isinstance(error, ConfigError) else [f"{name}: {str(error).splitlines()[0]}"]
        raise ConfigError([config.explain(_culprit(problem) or name, problem) for problem in problems]) from error


def _culprit(problem: str) -> str | None:
    """The component that a problem begins with: one that was called for a value of the one being built."""
    name = problem.partition(":")[0]
    return name if name in CATALOGUE else None


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
    layout = batch_layout(
        experiment.micro_batch_size, experiment.grad_accum_steps, experiment.global_batch_size, world_size
    )
    with torch.device("meta"):
        model = build(config, experiment.model)
    seq_len = model.seq_len if dataset is None else dataset.seq_len
    if dataset is not None:
        check_data(model, dataset, layout)
        check_loading(config, experiment, dataset, layout)
        for evaluator in evaluators:
            check_evaluation_data(model, dataset, evaluator.dataset)
    probe = _Probe(config, experiment, model)
    total = sum(parameter.numel() for parameter in model.parameters())
    trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    state_bytes = probe.state_bytes()
    bytes_per_value = COMPUTE_DTYPES[experiment.precision].itemsize
    activations = (
        model.activation_bytes(layout.micro_batch_size, seq_len, bytes_per_value)
        if hasattr(model, "activation_bytes")
        else 0
    )
    return Plan(
        config_hash=config.hash,
        resolved=config.resolved,
        num_steps=experiment.num_steps,
        tokens_per_step=layout.global_batch_size * seq_len,
        world_size=world_size,
        global_batch_size=layout.global_batch_size,
        micro_batch_size=layout.micro_batch_size,
        grad_accum_steps=layout.grad_accum_steps,
        seq_len=seq_len,
        parameters=_count(model, total, trainable),
        parameter_table=model.parameter_table() if hasattr(model, "parameter_table") else [("model", total)],
        flops_per_token=flops_per_token(model, seq_len),
        memory_per_rank_bytes={
            "parameters": 4 * total // world_size,
            "gradients": 4 * trainable // world_size,
            "optimizer": state_bytes // world_size,
            "activations": activations,
        },
        checkpoint_bytes=4 * (trainable if getattr(model, "adapter_only_checkpoints", False) else total) + state_bytes,
        learning_rates=probe.learning_rates(experiment.num_steps),
        dataset=describe_data(config, dataset),
        precision=experiment.precision,
        device=torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        num_threads=torch.get_num_threads(),
        peak_flops=peak.flops if peak else None,
        peak_source=peak.source if peak else "",
        versions=versions(),
    )


def device_peak(experiment: Experiment, *, remember: bool) -> Peak:
    """What one rank's device can do in the run's precision: its datasheet, or a short measurement."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return peak_flops(device, COMPUTE_DTYPES[experiment.precision], remember=remember)


def flops_per_token(model: Any, seq_len: int) -> float:
    """Forward and backward of one token: the model's own count, else six per parameter."""
    if hasattr(model, "flops_per_token"):
        return float(model.flops_per_token(seq_len))
    return 6.0 * sum(parameter.numel() for parameter in model.parameters())


def check_data(model: Any, dataset: Any, layout: BatchLayout) -> None:
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
    require_one_batch(len(dataset), layout.world_size, layout.micro_batch_size, layout.grad_accum_steps)


def check_loading(config: Config, experiment: Experiment, dataset: Any, layout: BatchLayout) -> None:
    """Build the first rank's data loader, without reading, to see what it refuses.

    Raises:
        ConfigError: A wrong value in it, or it ends before the run does.
    """
    call = partial(build, config)
    loader = build_loader(experiment, dataset, call(experiment.collate), layout, 0, call)
    try:
        require_steps(loader, experiment.num_steps)
    except ConfigError as error:
        told = config.explain(component_name(experiment.data_loader), str(error))
        raise ConfigError(config.explain("train", told)) from error


def check_evaluation_data(model: Any, dataset: Any, held_out: Any) -> None:
    """Refuse held-out data of another tokenizer than the training data's, or with ids that the model does not have.

    Raises:
        DataError: Either of them.
    """
    if dataset.tokenizer_fingerprint and hasattr(held_out, "check_tokenizer"):
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


def data_is_ready(config: Config) -> bool:
    """Whether every dataset of the run exists, so that building one makes nothing."""
    ready = [corpus.is_prepared(path) for path in _data_paths(config)]  # each is looked at: a wrong path is an error
    return all(ready)


def describe_data(config: Config, dataset: Any) -> dict[str, Any]:
    """What the banner and the plan say about the training data."""
    if dataset is None:
        return {"path": next(iter(_data_paths(config)), ""), "note": "made on the first run"}
    return {"path": dataset.name, "num_tokens": dataset.num_tokens, "num_documents": dataset.num_documents}


def _data_paths(config: Config) -> list[str]:
    """The packed files and corpora of the run: what is bound to `path` of a dataset, or a corpus bound elsewhere."""
    known = known_components()
    paths = []
    for name, value in config.resolved.items():
        selector, _, parameter = name.rpartition(".")
        entry = known.get(selector.rpartition("/")[2])
        is_corpus = isinstance(value, str) and value.startswith("stdlib:")
        if entry is not None and entry.type == "dataset" and (parameter == "path" or is_corpus):
            paths.append(value)
    return paths


def _count(model: Any, total: int, trainable: int) -> dict[str, int]:
    if hasattr(model, "num_parameters"):
        return dict(model.num_parameters())
    embeddings = {id(p) for module in model.modules() if isinstance(module, nn.Embedding) for p in module.parameters()}
    non_embedding = sum(parameter.numel() for parameter in model.parameters() if id(parameter) not in embeddings)
    return {"total": total, "trainable": trainable, "non_embedding": non_embedding}


class _Probe:
    """The run's optimizer and schedule over small parameters: what they need follows without a large model.

    Args:
        config: Where the settings come from.
        experiment: The settings.
        model: On meta; its groups are the run's.
    """

    def __init__(self, config: Config, experiment: Experiment, model: nn.Module) -> None:
        groups = build(config, experiment.parameter_groups)(model)
        self.sizes: list[tuple[nn.Parameter, int]] = []
        small = [{**group, "params": [self._small(parameter) for parameter in group["params"]]} for group in groups]
        self.optimizer: torch.optim.Optimizer = build(config, experiment.optimizer, small)
        self.scheduler: Any = build(config, experiment.scheduler, self.optimizer)

    def _small(self, parameter: nn.Parameter) -> nn.Parameter:
        small = nn.Parameter(torch.zeros([min(size, 8) for size in parameter.shape]))
        self.sizes.append((small, parameter.numel()))
        return small

    def learning_rates(self, num_steps: int) -> list[float]:
        """The schedule sampled from the first step to the last."""
        every = max(1, num_steps // CURVE_POINTS)
        lambdas = getattr(self.scheduler, "lr_lambdas", None)
        if lambdas is not None:
            steps = sorted({*range(0, num_steps, every), num_steps - 1})
            return [self.scheduler.base_lrs[0] * lambdas[0](step) for step in steps]
        curve = []
        for step in range(min(num_steps, MOST_SCHEDULE_STEPS)):
            if step % every == 0 or step == num_steps - 1:
                curve.append(float(self.optimizer.param_groups[0]["lr"]))
            self.scheduler.step()
        return curve

    def state_bytes(self) -> int:
        """Bytes of optimizer state for the whole model: measured after one update, scaled up by size."""
        for parameter, _ in self.sizes:
            parameter.grad = torch.zeros_like(parameter)
        self.optimizer.step()
        total = 0
        for parameter, size in self.sizes:
            tensors = [value for value in self.optimizer.state[parameter].values() if torch.is_tensor(value)]
            # a state tensor of another size than its parameter, such as a step count, is too small to matter
            same = [value for value in tensors if value.shape == parameter.shape]
            total += sum(value.element_size() for value in same) * size
        return total
