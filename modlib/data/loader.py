"""From (seed, step) to this rank's batches, in order, ahead of the training loop."""

from __future__ import annotations

import hashlib
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from modlib.components import component
from modlib.data.batch import Batch, map_tensors, split
from modlib.data.loader_workers import LoaderWorkers, load_batch
from modlib.runtime.errors import ConfigError, DataError

MicroBatches = list[Batch]


@component(
    "data_loader",
    "default",
    runtime_args=("dataset", "sampler", "collate", "world_size", "rank", "micro_batch_size", "grad_accum_steps"),
    not_science=("num_workers", "prefetch", "start_method", "pin_memory"),
)
class DataLoader:
    """Batches of one rank, a pure function of the step.

    The global batch of step s is the sampler's positions s x G to (s + 1) x G, with G = world_size x micro_batch_size x
    grad_accum_steps sequences. Within it, micro-batch a of rank r holds micro_batch_size positions from
    a x world_size x micro_batch_size + r x micro_batch_size. Its state is therefore one integer, the step, and the
    three factors of G may change when a run continues: the set of sequences per step stays the same.

    Use as a context manager: leaving it ends the background thread or the worker processes.

    Args:
        num_workers: Processes that load. 0 loads in a thread of this process, which is fastest for packed files.
        prefetch: Steps loaded ahead, per worker; 0 (without workers) loads when asked.
        start_method: How workers start. "spawn" is slower to start, and safe where forking a process with threads
            is not.
        pin_memory: Whether batches are put into page-locked memory; None does so when there is a GPU.
        dataset: Has `__len__` and `__getitem__`; `__getitems__(indices)` and `check_unchanged()` are used if there.
        sampler: Has `indices(start, count)`.
        collate: Makes (inputs, targets) from samples; inputs are a tensor or several by name.
        world_size: Data-parallel ranks.
        rank: This one.
        micro_batch_size: Sequences per rank per forward.
        grad_accum_steps: Micro-batches per rank per optimizer step.

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
        dataset: Any,
        sampler: Any,
        collate: Callable[[Any], Batch],
        world_size: int = 1,
        rank: int = 0,
        micro_batch_size: int,
        grad_accum_steps: int = 1,
    ) -> None:
        _check_numbers(
            at_least={
                "num_workers": (num_workers, 0),
                "prefetch": (prefetch, 1 if num_workers else 0),
                "world_size": (world_size, 1),
                "micro_batch_size": (micro_batch_size, 1),
                "grad_accum_steps": (grad_accum_steps, 1),
            },
            rank=rank,
            start_method=start_method,
        )
        self.global_batch_size = world_size * micro_batch_size * grad_accum_steps
        if len(dataset) < self.global_batch_size:
            raise DataError(
                f"windows in the dataset ({len(dataset)}) must be at least one global batch ({self.global_batch_size} "
                f"= micro_batch_size {micro_batch_size} x grad_accum_steps {grad_accum_steps} x {world_size} "
                "processes); use more text, a shorter SEQ_LEN or a smaller batch"
            )
        self.num_workers = num_workers
        self.prefetch = prefetch
        self.start_method = start_method
        self.pin_memory = torch.cuda.is_available() if pin_memory is None else pin_memory
        self.dataset = dataset
        self.sampler = sampler
        self.collate = collate
        self.world_size = world_size
        self.rank = rank
        self.micro_batch_size = micro_batch_size
        self.grad_accum_steps = grad_accum_steps
        self.wait_s = 0.0
        """Seconds the training loop has waited for data so far."""
        self._generation = 0
        self._pool: ThreadPoolExecutor | None = None
        self._workers: LoaderWorkers | None = None

    @property
    def steps_per_epoch(self) -> float:
        """Optimizer steps in which every window is seen once; epochs need not end on a step."""
        return len(self.dataset) / self.global_batch_size

    def indices(self, step: int) -> npt.NDArray[np.int64]:
        """This rank's samples of one step, (grad_accum_steps x micro_batch_size,), micro-batch after micro-batch."""
        start = step * self.global_batch_size + self.rank * self.micro_batch_size
        per_forward = self.world_size * self.micro_batch_size
        parts = [
            self.sampler.indices(start + number * per_forward, self.micro_batch_size)
            for number in range(self.grad_accum_steps)
        ]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def batch(self, step: int) -> MicroBatches:
        """The micro-batches that `iterate` yields for this step, loaded now; for replay and inspection.

        Args:
            step: Steps done before it; the first step is 0.
        """
        return self._cut(self._load(step))

    def iterate(self, start_step: int = 0) -> Iterator[MicroBatches]:
        """Yield, per optimizer step and without end, grad_accum_steps pairs of inputs and targets.

        Only one iteration is live at a time: starting another ends the one before.

        Args:
            start_step: Steps done before the first batch; 0 starts from scratch.

        Raises:
            DataError: Reading failed, the data was changed, or a worker died.
        """
        if start_step < 0:
            raise ConfigError(f"start_step ({start_step}) must be at least 0; pass the steps done")
        self._generation += 1
        if self.num_workers:
            source = self._from_workers(start_step)
        elif self.prefetch:
            source = self._from_thread(start_step)
        else:
            source = (self._load(step) for step in _count(start_step))
        return self._timed(source, self._generation)

    def _timed(self, source: Iterator[Batch], generation: int) -> Iterator[MicroBatches]:
        try:
            while True:
                if generation != self._generation:
                    raise RuntimeError("this iteration was ended by close() or by a newer iterate(); use the newer one")
                started = time.perf_counter()
                loaded = next(source)
                self.wait_s += time.perf_counter() - started
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
        check = getattr(self.dataset, "check_unchanged", None)
        if check is not None:
            check()
        return self.indices(step)

    def _cut(self, loaded: Batch) -> MicroBatches:
        return [loaded] if self.grad_accum_steps == 1 else split(loaded, self.micro_batch_size)

    def _from_thread(self, start_step: int) -> Iterator[Batch]:
        self._stop_thread()
        pool = self._pool = ThreadPoolExecutor(1, "modlib-data")
        steps = _count(start_step)
        ahead: deque[Future[Batch]] = deque()
        try:
            while True:
                while len(ahead) <= self.prefetch:
                    ahead.append(pool.submit(self._load, next(steps)))
                yield ahead.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _from_workers(self, start_step: int) -> Iterator[Batch]:
        if self._workers is None:
            self._workers = LoaderWorkers(
                self.dataset, self.collate, self.num_workers, self.prefetch, self.start_method
            )
        for batch in self._workers.iterate(self._checked_indices(step) for step in _count(start_step)):
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

    def __enter__(self) -> DataLoader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def _check_numbers(at_least: dict[str, tuple[int, int]], rank: int, start_method: str) -> None:
    problems = [
        f"{name} ({value}) must be at least {least}; set it to {least} or more"
        for name, (value, least) in at_least.items()
        if value < least
    ]
    world_size = at_least["world_size"][0]
    if not 0 <= rank < max(world_size, 1):
        problems.append(f"rank ({rank}) must be at least 0 and below world_size ({world_size}); check the launcher")
    if start_method not in ("fork", "spawn"):
        problems.append(f"start_method ({start_method!r}) must be 'fork' or 'spawn'; choose one of them")
    if problems:
        raise ConfigError(problems)


def batch_fingerprint(micro_batches: Sequence[Batch]) -> str:
    """16 hex digits that are equal for equal batches: same values, shapes and order of micro-batches."""
    digest = hashlib.sha256()
    for inputs, targets in micro_batches:
        named = inputs if isinstance(inputs, dict) else {"": inputs}
        for tensor in (*(named[name] for name in sorted(named)), targets):
            array = tensor.detach().cpu().numpy()
            array = array.astype("<f8" if tensor.is_floating_point() else "<i8", order="C")
            digest.update(f"{array.shape}".encode())
            digest.update(array.tobytes())
    return digest.hexdigest()[:16]


def _count(start: int) -> Iterator[int]:
    while True:
        yield start
        start += 1
