"""From (seed, step) to this rank's batches, in order, ahead of the training loop."""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from fractions import Fraction
from types import TracebackType
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from modlib.components import component
from modlib.data.batches.batch import Batch, map_tensors, split
from modlib.data.batches.batch_sampler import BatchSampler
from modlib.data.batches.layout import BatchLayout
from modlib.data.batches.loader_workers import LoaderWorkers, load_batch
from modlib.data.batches.sampler import FirstEpochAgain
from modlib.data.datasets.dataset import Dataset, Watched
from modlib.runtime.errors import ConfigError

MicroBatches = list[Batch]


@component(
    "data_loader",
    "default",
    runtime_args=("dataset", "sampler", "collate", "batch_sampler", "layout", "rank", "num_epochs"),
    not_science=("num_workers", "prefetch", "start_method", "pin_memory"),
)
class DataLoader:
    """Batches of one rank, without end; a pure function of the step.

    What a step holds, the batch sampler computes from the step alone. So the state of a loader is one integer, and the
    layout may change when a run continues, as long as its global batch stays: the set of sequences per step is the
    same.

    Use as a context manager: leaving it ends the background thread or the worker processes.

    Args:
        num_workers: Processes that load. 0 loads in a thread of this process, which is fastest for packed files.
        prefetch: Steps loaded ahead, per worker; 0 (without workers) loads when asked.
        start_method: How workers start. "spawn" is slower to start, and safe where forking a process with threads
            is not.
        pin_memory: Whether batches are put into page-locked memory; None does so when there is a GPU.
        dataset: Has `__getitem__`; `__getitems__(indices)`, `read_ahead(indices)` and `check_unchanged()` are used if
            there.
        sampler: Has `indices(start, count)`, and the number of samples as its length.
        collate: Makes (inputs, targets) from samples; inputs are a tensor or several by name.
        batch_sampler: Called with the sampler and this rank's share; None is `BatchSampler`.
        layout: How the global batch is laid out over ranks and micro-batches.
        rank: This one.
        num_epochs: Epochs after which it ends; None is never. A gin file sets it with `RepeatingDataLoader`.

    Raises:
        ConfigError: A number is out of range.
        DataError: The dataset is shorter than one global batch.
    """

    def __init__(
        self,
        *,
        num_workers: int = 0,
        prefetch: int = 2,
        start_method: Literal["fork", "spawn"] = "fork",
        pin_memory: bool | None = None,
        dataset: Dataset,
        sampler: Any,
        collate: Callable[[Any], Batch],
        batch_sampler: Callable[..., Any] | None = None,
        layout: BatchLayout,
        rank: int = 0,
        num_epochs: int | None = None,
    ) -> None:
        problems = _settings_problems(num_workers, prefetch) + layout.problems(rank)
        if num_epochs is not None and num_epochs < 1:
            problems.append(f"num_epochs ({num_epochs}) must be at least 1; set it to 1 or more")
        if start_method not in ("fork", "spawn"):
            problems.append(f"start_method ({start_method!r}) must be 'fork' or 'spawn'; choose one of them")
        if problems:
            raise ConfigError(problems)
        self.num_workers = num_workers
        self.prefetch = prefetch
        self.start_method = start_method
        self.pin_memory = torch.cuda.is_available() if pin_memory is None else pin_memory
        self.dataset = dataset
        self.sampler = sampler
        self.collate = collate
        self.batch_sampler = (batch_sampler or BatchSampler)(sampler=sampler, layout=layout, rank=rank)
        self.layout = layout
        self.num_epochs = num_epochs
        self.num_steps = None if num_epochs is None else int(self.batch_sampler.num_steps(num_epochs))
        """Steps after which `iterate` ends; None is never."""
        self.wait_s = 0.0
        """Seconds the training loop has waited for data so far."""
        self._generation = 0
        self._pool: ThreadPoolExecutor | None = None
        self._workers: LoaderWorkers | None = None

    @property
    def global_batch_size(self) -> int:
        """Sequences per optimizer step over all ranks."""
        return int(self.batch_sampler.global_batch_size)

    @property
    def steps_per_epoch(self) -> Fraction:
        """Optimizer steps of one epoch, exactly; epochs need not end on a step."""
        return Fraction(self.batch_sampler.steps_per_epoch)

    def indices(self, step: int) -> npt.NDArray[np.int64]:
        """This rank's samples of one step, (grad_accum_steps x micro_batch_size,), micro-batch after micro-batch."""
        found: npt.NDArray[np.int64] = self.batch_sampler.indices(step)
        return found

    def batch(self, step: int) -> MicroBatches:
        """The micro-batches that `iterate` yields for this step, loaded now; for replay and inspection.

        Args:
            step: Steps done before it; the first step is 0.
        """
        return self._cut(self._load(step))

    def iterate(self, start_step: int = 0) -> Iterator[MicroBatches]:
        """Yield, per optimizer step, grad_accum_steps pairs of inputs and targets.

        Only one iteration is live at a time: starting another ends the one before.

        Args:
            start_step: Steps done before the first batch; 0 starts from scratch.

        Raises:
            ConfigError: start_step is negative, or beyond the last step.
            DataError: Reading failed, the data was changed, or a worker died.
        """
        if start_step < 0:
            raise ConfigError(f"start_step ({start_step}) must be at least 0; pass the steps done")
        if self.num_steps is not None and start_step > self.num_steps:
            raise ConfigError(
                f"start_step ({start_step}) must be at most the loader's {self.num_steps} steps; raise num_epochs"
            )
        self._generation += 1
        steps = iter(itertools.count(start_step) if self.num_steps is None else range(start_step, self.num_steps))
        if self.num_workers:
            source = self._from_workers(steps)
        elif self.prefetch:
            source = self._from_thread(steps)
        else:
            source = (self._load(step) for step in steps)
        return self._timed(source, self._generation)

    def _timed(self, source: Iterator[Batch], generation: int) -> Iterator[MicroBatches]:
        try:
            while True:
                if generation != self._generation:
                    raise RuntimeError("this iteration was ended by close() or by a newer iterate(); use the newer one")
                started = time.perf_counter()
                loaded = next(source, None)
                self.wait_s += time.perf_counter() - started
                if loaded is None:
                    return
                yield self._cut(loaded)
        finally:
            source.close()  # type: ignore[attr-defined]  # every source is a generator

    def _load(self, step: int) -> Batch:
        return self._pinned(load_batch(self.dataset, self.collate, self._checked_indices(step)))

    def _pinned(self, batch: Batch) -> Batch:
        if not self.pin_memory:
            return batch
        inputs, targets = batch
        return map_tensors(Tensor.pin_memory, inputs), targets.pin_memory()

    def _checked_indices(self, step: int) -> npt.NDArray[np.int64]:
        if isinstance(self.dataset, Watched):
            self.dataset.check_unchanged()
        return self.indices(step)

    def _cut(self, loaded: Batch) -> MicroBatches:
        return [loaded] if self.layout.grad_accum_steps == 1 else split(loaded, self.layout.micro_batch_size)

    def _from_thread(self, steps: Iterator[int]) -> Iterator[Batch]:
        self._stop_thread()
        pool = self._pool = ThreadPoolExecutor(1, "modlib-data")
        ahead: deque[Future[Batch]] = deque()
        try:
            while True:
                for step in itertools.islice(steps, self.prefetch + 1 - len(ahead)):
                    ahead.append(pool.submit(self._load, step))
                if not ahead:
                    return
                yield ahead.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _from_workers(self, steps: Iterator[int]) -> Iterator[Batch]:
        if self._workers is None:
            self._workers = LoaderWorkers(
                self.dataset, self.collate, self.num_workers, self.prefetch, self.start_method
            )
        for batch in self._workers.iterate(self._checked_indices(step) for step in steps):
            yield self._pinned(batch)

    def _stop_thread(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None

    def close(self) -> None:
        """End the background thread and the worker processes; may be called more than once."""
        self._generation += 1
        self._stop_thread()
        if self._workers is not None:
            self._workers.close()
            self._workers = None

    def __len__(self) -> int:
        """Steps until it ends."""
        if self.num_steps is None:
            raise TypeError("a data loader without num_epochs has no length")
        return self.num_steps

    def require_steps(self, num_steps: int) -> None:
        """Refuse a run that is longer than the epochs.

        Raises:
            ConfigError: num_steps needs more epochs than num_epochs.
        """
        if self.num_steps is not None and num_steps > self.num_steps:
            raise ConfigError(
                f"num_steps ({num_steps}) must be at most {self.num_steps}, the steps of num_epochs "
                f"({self.num_epochs}) over {len(self.sampler)} windows at {self.global_batch_size} per step; set "
                f"num_steps = {self.num_steps}, or num_epochs = {self.batch_sampler.num_epochs(num_steps)}"
            )

    def __enter__(self) -> DataLoader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


@component(
    "data_loader",
    "repeating_data_loader",
    runtime_args=("dataset", "sampler", "collate", "batch_sampler", "layout", "rank"),
    not_science=("num_workers", "prefetch", "start_method", "pin_memory"),
)
def RepeatingDataLoader(
    *,
    num_epochs: int,
    reshuffle_after_epoch: bool = True,
    num_workers: int = 0,
    prefetch: int = 2,
    start_method: Literal["fork", "spawn"] = "fork",
    pin_memory: bool | None = None,
    dataset: Dataset,
    sampler: Any,
    collate: Callable[[Any], Batch],
    batch_sampler: Callable[..., Any] | None = None,
    layout: BatchLayout,
    rank: int = 0,
) -> DataLoader:
    """A `DataLoader` that ends after a number of epochs. Its length is the number of steps in them.

    Where batches are carried from epoch to epoch, the samples of a last incomplete batch are left out.

    Args:
        num_epochs: Epochs, at least 1.
        reshuffle_after_epoch: Whether each epoch has an order of its own; otherwise all have the first one's.
        num_workers: See `DataLoader`, as for all that follow.
        prefetch: Steps loaded ahead, per worker.
        start_method: How workers start.
        pin_memory: Whether batches are put into page-locked memory.
        dataset: What is read.
        sampler: The order of the samples.
        collate: Makes (inputs, targets) from samples.
        batch_sampler: Cuts the order into steps; None is `BatchSampler`.
        layout: Of the global batch.
        rank: This one.

    Raises:
        ConfigError: A number is out of range.
        DataError: The dataset is shorter than one global batch.
    """
    return DataLoader(
        num_workers=num_workers,
        prefetch=prefetch,
        start_method=start_method,
        pin_memory=pin_memory,
        dataset=dataset,
        sampler=sampler if reshuffle_after_epoch else FirstEpochAgain(sampler),
        collate=collate,
        batch_sampler=batch_sampler,
        layout=layout,
        rank=rank,
        num_epochs=num_epochs,
    )


def _settings_problems(num_workers: int, prefetch: int) -> list[str]:
    at_least = {"num_workers": (num_workers, 0), "prefetch": (prefetch, 1 if num_workers else 0)}
    return [
        f"{name} ({value}) must be at least {least}; set it to {least} or more"
        for name, (value, least) in at_least.items()
        if value < least
    ]
