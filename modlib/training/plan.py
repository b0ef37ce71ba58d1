"""What a run will do, computed before it does it: on the meta device, for any world size."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from modlib.components import CATALOGUE, component_name, known_components
from modlib.config import Config
from modlib.config.resolving import Setting
from modlib.config.values import MacroUse, plain
from modlib.data import corpus
from modlib.data.batch_sampler import require_one_batch
from modlib.distributed.fsdp import COMPUTE_DTYPES
from modlib.models.weights import check_initialization
from modlib.nn.document_mask import document_mask_bytes
from modlib.runtime.errors import ConfigError, ModlibError
from modlib.runtime.hardware import Peak, peak_flops
from modlib.runtime.run_folder import versions
from modlib.tracking.plan import Plan
from modlib.training.batches import BatchLayout, batch_layout
from modlib.training.evaluation import Evaluator
from modlib.training.experiment import Experiment
from modlib.training.loading import build_loader, require_steps

CURVE_POINTS = 200
PACKED_READERS = ("PackedDataset", "PackedDocuments", "PackedShards")  # these take corpora by name, too
NO_ACTIVATIONS = "memory is without activations: the model estimates none"
MOST_SCHEDULE_STEPS = 100_000  # of a schedule without closed form, the curve shows no more


def build(config: Config, choice: Any, *args: Any, **kwargs: Any) -> Any:
    """Call a configured component; a wrong value in it becomes an error that says where the value was set.

    Raises:
        ConfigError: The component refused its parameters.
        ModlibError: Another error of its own.
    """
    name = component_name(choice)
    with _explained(config, name):
        try:
            return choice(*args, **kwargs)
        except (ValueError, TypeError) as error:
            if isinstance(error, ModlibError):
                raise
            raise ConfigError(f"{name}: {str(error).splitlines()[0]}") from error


@contextmanager
def _explained(config: Config, *names: str) -> Iterator[None]:
    """An error inside says where the parameters of these components that it names were set."""
    try:
        yield
    except ModlibError as error:
        raised = _as_raised(error)
        problems = raised.problems if isinstance(raised, ConfigError) else [str(raised)]
        told = [_told(config, names, problem) for problem in problems]
        raise type(raised)(told if isinstance(raised, ConfigError) else told[0]) from error  # type: ignore[arg-type]


def _told(config: Config, names: Sequence[str], problem: str) -> str:
    """A problem with the origin of what it names of these components, each line once."""
    lines = [problem]
    for name in names:
        lines += config.explain(_culprit(problem) or name, problem).removeprefix(problem).splitlines()[1:]
    return "\n".join(dict.fromkeys(lines))


def _as_raised(error: ModlibError) -> ModlibError:
    """The error itself: gin raises one of a subclass in its place, whose text ends with the class's path and scope."""
    inner = error.__context__
    while isinstance(inner, ModlibError) and type(inner) is not type(error) and isinstance(error, type(inner)):
        error, inner = inner, inner.__context__
    return error


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
    with _explained(config, "train"):
        layout = batch_layout(
            experiment.micro_batch_size, experiment.grad_accum_steps, experiment.global_batch_size, world_size
        )
    with torch.device("meta"):
        model = build(config, experiment.model)
    seq_len = model.seq_len if dataset is None else dataset.seq_len
    check_parts(config, experiment, model)
    if dataset is not None:
        with _explained(config, component_name(experiment.dataset), component_name(experiment.model)):
            check_data(model, dataset, layout)
        check_loading(config, experiment, dataset, layout)
        for evaluator in evaluators:
            check_evaluation_data(model, dataset, evaluator.dataset)
    probe = _Probe(config, experiment, model)
    total = sum(parameter.numel() for parameter in model.parameters())
    trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    state_bytes = probe.state_bytes()
    bytes_per_value = COMPUTE_DTYPES[experiment.precision].itemsize
    sizes = (layout.micro_batch_size, seq_len, bytes_per_value)
    activations = model.activation_bytes(*sizes) if hasattr(model, "activation_bytes") else 0
    if _documents_apart(config) and not (torch.cuda.is_available() and experiment.compile):
        activations += document_mask_bytes(*sizes)  # compiled on a GPU, the mask is one of blocks
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
        flops_convention="palm" if hasattr(model, "flops_per_token") else "parameters",
        learning_rates=probe.learning_rates(experiment.num_steps),
        dataset=describe_data(config, dataset),
        precision=experiment.precision,
        device=torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        num_threads=torch.get_num_threads(),
        peak_flops=peak.flops if peak else None,
        peak_source=peak.source if peak else "",
        versions=versions(),
        notes=[] if hasattr(model, "activation_bytes") else ["memory is without activations: the model estimates none"],
    )


def device_peak(experiment: Experiment, *, remember: bool) -> Peak:
    """What one rank's device can do in the run's precision: its datasheet, or a short measurement."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return peak_flops(device, COMPUTE_DTYPES[experiment.precision], remember=remember)


def flops_per_token(model: Any, seq_len: int) -> float:
    """Forward and backward of one token: the model's own count, else six per parameter that is not only looked up."""
    if hasattr(model, "flops_per_token"):
        return float(model.flops_per_token(seq_len))
    multiplied = {
        parameter: parameter.numel()
        for module in model.modules()
        if not isinstance(module, nn.Embedding | nn.EmbeddingBag)
        for parameter in module.parameters(recurse=False)
    }
    return 6.0 * sum(multiplied.values())


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


def check_parts(config: Config, experiment: Experiment, model: nn.Module) -> None:
    """Build what is called late in a run, so that a wrong value in it is found before the run begins.

    Raises:
        ConfigError: A component refused its parameters.
    """
    for choice in (experiment.loss, experiment.checkpointing, experiment.sample):
        if choice is not None:
            build(config, choice)
    for choice in experiment.subscribers:
        require_run_path(config, choice)
    initialization = build(config, experiment.initialization) if experiment.initialization else None
    build(config, check_initialization, model, initialization)
    check_takes_documents(config, model, "takes_document_ids")
    if experiment.gradient_clipper is not None:
        build(config, experiment.gradient_clipper, model)


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
    for setting in _documents_apart(config):
        text = (
            f"{setting.name} (True) must be False with {type(part).__name__}, which takes no document_ids; leave "
            "it out, or use a model and a collator that do: GPT2, LMCollator"
        )
        raise ConfigError(config.explain(setting.instance.name, text))


def _documents_apart(config: Config) -> list[Setting]:
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
    with _explained(config, component_name(experiment.data_loader), "train"):
        require_steps(loader, experiment.num_steps)


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
    """Whether every dataset of the run exists, so that building one makes nothing.

    Raises:
        ConfigError: A path is neither that of a file nor a corpus; all such paths at once.
    """
    ready, problems = [], []
    for setting in _data_settings(config):
        path, reader = str(plain(setting.value)), setting.instance.name
        try:
            if reader in PACKED_READERS or path.startswith("stdlib:"):
                ready.append(corpus.is_prepared(path))
            elif not Path(path).exists():
                knob = setting.node.name if isinstance(setting.node, MacroUse) else setting.name
                problems.append(
                    f"path ('{path}') must be the file that {reader} reads, but there is no file "
                    f"{Path(path).absolute()}; name yours with: --gin_param \"{knob}='...'\""
                )
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)))
    return all(ready)


def describe_data(config: Config, dataset: Any) -> dict[str, Any]:
    """What the banner and the plan say about the training data."""
    if dataset is None:
        path = next((str(plain(one.value)) for one in _data_settings(config)), "")
        return {"path": path, "note": "made on the first run" if path.startswith("stdlib:") else "not there"}
    known = {"path": dataset.name, "num_tokens": dataset.num_tokens, "num_documents": dataset.num_documents}
    known["has_tokenizer"] = bool(getattr(dataset, "tokenizer_fingerprint", ""))
    padding = getattr(dataset, "padding", None)
    return known if padding is None else known | {"padding": padding}


def _data_settings(config: Config) -> list[Setting]:
    """Where the run names its files and corpora: `path` of a dataset, or another parameter with a corpus."""
    known = known_components()
    found = []
    for setting in config.settings:
        entry, value = known.get(setting.instance.name), plain(setting.value)
        is_corpus = isinstance(value, str) and value.startswith("stdlib:")
        if entry is not None and entry.type == "dataset" and (setting.parameter == "path" or is_corpus):
            found.append(setting)
    return found


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
