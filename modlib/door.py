"""modlib from Python: configurations, models, runs and data, as `import modlib` gives them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from modlib.config import Config, load
from modlib.runtime.errors import EXIT_OK, STOPPED, ConfigError, ModlibError, RunFolderError
from modlib.runtime.run_folder import RunFolder

if TYPE_CHECKING:
    import torch

    from modlib.checkpointing.loading import LoadedState
    from modlib.data.batches.batch import Batch
    from modlib.data.datasets.dataset import Dataset
    from modlib.data.text.tokenizer import TextTokenizer
    from modlib.launching.continuing import Resume
    from modlib.launching.slurm import Executor
    from modlib.training.experiment import Experiment
    from modlib.training.parts import Parts
    from modlib.training.step import StepResult

Paths = str | Path | Sequence[str | Path]


class RunFailedError(ModlibError):
    """A run that `train` started ended with an error, which its log has told."""


def load_config(gin_files: Paths, params: Sequence[str] | Mapping[str, Any] = ()) -> Config:
    """Read and check a configuration, as --gin_file and --gin_param do.

    Args:
        gin_files: One or several, by name or path; later ones win.
        params: Bindings such as `"LR=1e-3"`, or a mapping such as `{"LR": 1e-3}`.

    Raises:
        ConfigError: Everything that is wrong with it, each with file and line.
    """
    files = [gin_files] if isinstance(gin_files, str | Path) else list(gin_files)
    given = [f"{name}={value!r}" for name, value in params.items()] if isinstance(params, Mapping) else list(params)
    return load(files, given)


@dataclass(frozen=True, repr=False)
class Built:
    """A configuration's objects in memory, on one device, as training begins with them.

    Args:
        config: The configuration.
        experiment: Its settings, one field for each parameter of `train`.
        parts: Everything that one update touches.
    """

    config: Config
    experiment: Experiment
    parts: Parts

    def __repr__(self) -> str:
        count = sum(parameter.numel() for parameter in self.model.parameters())
        return f"Built({self.config!r}, {type(self.model).__name__} of {count:,} parameters on {self.device})"

    @property
    def model(self) -> torch.nn.Module:
        """With its initial weights."""
        return self.parts.model

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """Over the model's parameters."""
        return self.parts.optimizer

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.parts.world.device

    @cached_property
    def dataset(self) -> Dataset:
        """The training samples."""
        return open_dataset(self.config)

    def batches(self, start: int = 0) -> Iterator[Sequence[Batch]]:
        """The micro-batches of each optimizer step, in the order of training: lists of (inputs, targets).

        Args:
            start: Steps that are done already.
        """
        from modlib.data.batches.layout import batch_layout
        from modlib.training.data_loading import build_loader

        settings = self.experiment
        layout = batch_layout(
            settings.micro_batch_size, settings.grad_accum_steps, settings.global_batch_size, world_size=1
        )
        with build_loader(settings, self.dataset, settings.collate(), layout, rank=0) as loader:
            yield from loader.iterate(start)

    def update(self, batch: Sequence[Batch], step: int = 1) -> StepResult:
        """One optimizer step, as training does it: forward, backward, clip, update, schedule.

        Args:
            batch: One of `batches()`.
            step: Its number, for error texts.
        """
        from modlib.training.step import update

        return update(self.parts, batch, step)


def build(config: Config, device: str | torch.device | None = None) -> Built:
    """Model, loss, optimizer and schedule of a configuration; data is opened when it is used.

    Args:
        config: From `load_config`, or of a run.
        device: None takes the first GPU, or the CPU.

    Raises:
        ConfigError: A component refused a parameter; with where it was set.
    """
    import torch

    from modlib.distributed.process_group import World
    from modlib.runtime.seeds import derive, seed_everything
    from modlib.training.building import build_experiment
    from modlib.training.parts import build_parts

    experiment = build_experiment(config)
    seed_everything(derive(experiment.seed, "rank", 0))
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    return Built(config, experiment, build_parts(experiment, World(0, 0, 1, place), total_flops=0.0))


def train(
    config: Config,
    *,
    runs_dir: str | Path = "runs",
    name: str | None = None,
    resume: Resume = "auto",
    executor: Executor | None = None,
) -> Run:
    """Train, here or on a cluster; a run that exists continues. The same as launch.py.

    Args:
        config: From `load_config`.
        runs_dir: The folder of run folders.
        name: The run's; None: from its gin file and its hash.
        resume: "auto" continues a run that exists; "never" and "must" refuse the other case.
        executor: "local" or "slurm"; None: what the configuration says.

    Returns:
        The run: finished, stopped by a signal with everything saved, or submitted.

    Raises:
        ConfigError: Something is wrong with the configuration; nothing was started.
        RunFailedError: Training ended with an error; `exit_code` is its class.
    """
    from modlib.cli.start.planning import planned
    from modlib.launching.local import Local

    config, place, name = planned(config, executor, Path(runs_dir), name)
    if isinstance(place, Local):
        from modlib.cli.start.local import train_here

        code = train_here(config, place, runs_dir=Path(runs_dir), name=name, resume=resume)
    else:
        from modlib.cli.start.slurm import submit_run

        code = submit_run(config, place, runs_dir=Path(runs_dir), name=name, resume=resume, chain=1, follow=False)
    run = load_run(Path(runs_dir) / name)
    if code != EXIT_OK and code not in STOPPED:
        error = RunFailedError(
            f"run ({run.path}) must end without an error, but ended with exit code {code}; see its log"
        )
        error.exit_code = code
        raise error
    return run


class Run:
    """A run folder.

    Args:
        path: The folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._folder = RunFolder(path)

    def __repr__(self) -> str:
        state = self._folder.read()
        return f"Run({self.name!r}, {state.get('status', 'unknown')}, step {state.get('step', 0)})"

    @property
    def name(self) -> str:
        """Of the folder."""
        return self.path.name

    @property
    def status(self) -> str:
        """As run.json has it: "running", "finished", "stopped", "failed", ..."""
        return str(self._folder.read().get("status", "unknown"))

    @property
    def steps(self) -> list[int]:
        """The steps of its checkpoints, in order."""
        from modlib.checkpointing.names import step_folders

        return sorted(step for step, _ in step_folders(self._folder.checkpoints_path))

    @cached_property
    def config(self) -> Config:
        """Its complete configuration."""
        return load([self._folder.config_path])

    def model(self, step: int | None = None) -> torch.nn.Module:
        """The model with the weights of a checkpoint, in evaluation mode.

        Args:
            step: Of the checkpoint; None takes the newest one that is undamaged.

        Raises:
            CheckpointError: There is no such checkpoint.
        """
        from modlib.cli.models.trained_run import load_run as loaded

        model: torch.nn.Module = loaded(self._folder, step).model
        return model.eval()

    @cached_property
    def tokenizer(self) -> TextTokenizer:
        """The one that made its training data."""
        from modlib.cli.models.trained_run import tokenizer_of

        return tokenizer_of(self._trained)[0]

    def metrics(self) -> list[dict[str, Any]]:
        """The rows of metrics.jsonl, each with its "step"; `pandas.DataFrame(run.metrics())` is a table of them."""
        from modlib.tracking.jsonl import read_lines

        return list(read_lines(self._folder.metrics_path)) if self._folder.metrics_path.is_file() else []

    def curve(self, metric: str = "train/loss") -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
        """Steps and values of one metric.

        Raises:
            ConfigError: It was never logged; with the names that were.
        """
        rows = self.metrics()
        points = [(row["step"], row[metric]) for row in rows if metric in row]
        if not points:
            known = sorted({name for row in rows for name in row if "/" in name})
            raise ConfigError(
                f"metric ({metric}) must be one that {self.name} logged; it has {', '.join(known) or 'none'}"
            )
        steps, values = zip(*points)
        return np.array(steps, np.int64), np.array(values, np.float64)

    @cached_property
    def _trained(self) -> Any:
        from modlib.cli.models.trained_run import load_run as loaded

        return loaded(self._folder)


def load_run(path: str | Path) -> Run:
    """A run by its folder; nothing in it changes.

    Raises:
        RunFolderError: The folder holds no run.
    """
    run = Run(Path(path))
    if not RunFolder(run.path).config_path.is_file():
        raise RunFolderError(f"run ({path}) must be a folder with a config.gin, but there is none; give a run's folder")
    return run


def load_checkpoint(
    path: str | Path,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer | None = None,
    scheduler: Any = None,
) -> LoadedState:
    """Restore a checkpoint into live objects, which change only after every byte is verified.

    Args:
        path: A checkpoint's folder, or a run's, which stands for its newest undamaged checkpoint.
        model: Of exactly the saved names, shapes and dtypes.
        optimizer: None leaves its state unread.
        scheduler: None leaves its state unread.

    Raises:
        CheckpointError: It does not fit, or is damaged, or there is none; the model is untouched.
    """
    from modlib.checkpointing.loading import complete_checkpoints, load
    from modlib.checkpointing.names import MANIFEST
    from modlib.runtime.errors import CheckpointError

    folder = Path(path)
    if (folder / MANIFEST).is_file():
        return load(folder, model=model, optimizer=optimizer, scheduler=scheduler)
    checkpoints = folder / "checkpoints" if (folder / "checkpoints").is_dir() else folder
    newest = next(complete_checkpoints(checkpoints), None)
    if newest is None:
        raise CheckpointError(
            f"checkpoint ({path}) must be a checkpoint's folder, or a run's that has one; there is none"
        )
    return load(newest, model=model, optimizer=optimizer, scheduler=scheduler)


def open_dataset(data: str | Path | Config, seq_len: int = 1024) -> Dataset:
    """Training samples by index: `dataset[0]` is one, `len(dataset)` is an epoch.

    Args:
        data: A packed file, whose tokens are cut into windows of seq_len + 1; or a configuration, whose training data
            it is.
        seq_len: Targets per window, of a packed file.

    Raises:
        DataError: The file is missing or damaged, or too short for one window.
    """
    if isinstance(data, Config):
        from modlib.training.building import build as build_component
        from modlib.training.building import build_experiment

        dataset: Dataset = build_component(data, build_experiment(data).dataset)
        return dataset
    from modlib.data.datasets.packed_dataset import PackedDataset

    return PackedDataset(path=str(data), seq_len=seq_len)


def generate(
    run: Run | str | Path,
    prompt: str = "",
    *,
    max_new_tokens: int = 128,
    temperature: float = 0.8,
    top_k: int | None = 50,
    top_p: float = 1.0,
    seed: int = 0,
) -> str:
    """Let a run's newest model continue a prompt; the text ends where a document does.

    Args:
        run: The run, or its folder.
        prompt: Text to continue; empty starts a document.
        max_new_tokens: Most tokens to add.
        temperature: 0 takes the most likely token each time; 1 the model's own odds.
        top_k: Sample among this many most likely tokens; None: among all.
        top_p: Sample among the most likely tokens that have this probability together.
        seed: Of the sample.

    Returns:
        The prompt and what follows it.
    """
    from modlib.cli.models.trained_run import tokenizer_of
    from modlib.inference.generation import sample_text

    trained = (run if isinstance(run, Run) else load_run(run))._trained
    tokenizer, end_of_document = tokenizer_of(trained)
    return sample_text(
        trained.model,
        tokenizer,
        prompt,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
        end_of_document=end_of_document,
    )
