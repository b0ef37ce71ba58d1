"""Worker processes that load batches: torch's DataLoader, made safe to signal, to kill and to resume."""

from __future__ import annotations

import ctypes
import os
import pickle
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import wait
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import DataLoader as TorchDataLoader
from torch.utils.data._utils import signal_handling

from modlib.data.batches.batch import Batch, map_tensors
from modlib.data.batches.collate import Collator
from modlib.data.datasets.dataset import Dataset, fetch
from modlib.runtime.errors import DataError
from modlib.runtime.signals import ignore_stop_signals, ignored_in_children

_PR_SET_PDEATHSIG = 1
_JOIN_S = 5.0
_NOTICED_S = 1.0


def load_batch(dataset: Dataset, collate: Collator, indices: npt.NDArray[np.int64]) -> Batch:
    """Fetch these samples and collate them."""
    return collate(fetch(dataset, indices))


class LoaderWorkers:
    """Processes that live for the whole run and return batches in the order they were asked for.

    They ignore the signals that ask a run to stop: the scheduler sends those to every process, and the parent must
    still get its batches while it saves. They end with the parent, however it ends.

    Args:
        dataset: What is read.
        collate: Applied in the worker.
        num_workers: Processes.
        prefetch: Batches each loads ahead.
        start_method: "fork" or "spawn".
    """

    def __init__(
        self,
        dataset: Dataset,
        collate: Collator,
        num_workers: int,
        prefetch: int,
        start_method: str,
    ) -> None:
        self._plan = _Plan()
        # Without a generator of its own torch would draw from the global one, and dropout would depend on num_workers.
        own_generator = torch.Generator().manual_seed(0)
        self._loader: TorchDataLoader[Any] = TorchDataLoader(
            _Share(dataset, collate),  # type: ignore[arg-type]
            batch_sampler=self._plan,  # type: ignore[arg-type]
            collate_fn=_as_it_is,
            num_workers=num_workers,
            prefetch_factor=prefetch,
            persistent_workers=True,
            multiprocessing_context=start_method,
            worker_init_fn=_EndsWith(os.getpid(), threading.current_thread() is threading.main_thread()),
            generator=own_generator,
        )

    @property
    def pids(self) -> list[int]:
        """Process ids of the workers that were started."""
        return [worker.pid for worker in getattr(self._loader._iterator, "_workers", [])]

    def iterate(self, indices: Iterator[npt.NDArray[np.int64]]) -> Iterator[Batch]:
        """Yield one batch per array of sample indices, in order. What an earlier call asked for is thrown away.

        Raises:
            DataError: A worker ended by itself.
            Exception: Whatever the dataset raised in a worker.
        """
        self._plan.indices = indices
        # Signals are blocked until a worker has set its own handlers: one would run the parent's handler in it.
        with self._death_is_a_data_error(), ignored_in_children():
            batches = iter(self._loader)
        _tell_of_deaths_only_when_asked(batches)
        while True:
            with self._death_is_a_data_error():
                loaded = next(batches, None)
            if loaded is None:
                return
            if isinstance(loaded, Exception):
                raise loaded
            inputs, targets = loaded
            yield map_tensors(torch.from_numpy, inputs), torch.from_numpy(targets)

    @contextmanager
    def _death_is_a_data_error(self) -> Iterator[None]:
        """A dead worker shows as one of many errors, of torch or of a broken pipe: make them one, with its pid."""
        try:
            yield
        except Exception as error:
            workers = getattr(self._loader._iterator, "_workers", [])
            wait([worker.sentinel for worker in workers], _NOTICED_S)  # the pipe may break before the process is gone
            dead = [f"{worker.pid} (exit code {worker.exitcode})" for worker in workers if not worker.is_alive()]
            if not dead:
                raise
            raise DataError(
                f"data loader worker {', '.join(dead)} ended by itself; it may have been killed for memory: look at "
                "the kernel log, or set DataLoader.num_workers = 0"
            ) from error

    def close(self) -> None:
        """End the processes."""
        iterator = self._loader._iterator
        if iterator is None:
            return
        self._loader._iterator = None
        iterator._shutdown_workers()  # type: ignore[attr-defined]
        for worker in iterator._workers:  # type: ignore[attr-defined]
            if worker.is_alive():
                worker.kill()  # terminate() would send a signal that it ignores
            worker.join(_JOIN_S)


class _Plan:
    """The batch sampler torch's DataLoader asks: what to load next, set anew for each iteration."""

    indices: Iterator[npt.NDArray[np.int64]]

    def __iter__(self) -> Iterator[npt.NDArray[np.int64]]:
        return self.indices


class _Share:
    """The dataset as a worker sees it: whole batches, and errors as values, so that they reach the parent unchanged."""

    def __init__(self, dataset: Dataset, collate: Collator) -> None:
        self.dataset = dataset
        self.collate = collate

    def __getitems__(self, indices: npt.NDArray[np.int64]) -> Any:
        try:
            # As arrays: torch would send tensors as file descriptors, which takes longer at these sizes, and which
            # cannot be fetched from a worker that died after it answered.
            inputs, targets = load_batch(self.dataset, self.collate, indices)
            return map_tensors(torch.Tensor.numpy, inputs), targets.numpy()
        except Exception as error:
            return _picklable(error)


def _picklable(error: Exception) -> Exception:
    """The error itself where it survives the way to the parent; the queue would drop any other without a word."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__} in a loader worker: {error}")
    return error


def _as_it_is(batch: Any) -> Any:
    return batch


class _EndsWith:
    """Runs first in each worker: ignore the signals meant for the parent, and die with it.

    Args:
        parent: Process id of the parent.
        from_main_thread: Whether its main thread starts the workers; Linux ties a child to the *thread* that made it.
    """

    def __init__(self, parent: int, from_main_thread: bool) -> None:
        self.parent = parent
        self.from_main_thread = from_main_thread

    def __call__(self, _: int) -> None:
        ignore_stop_signals()
        if sys.platform == "linux" and self.from_main_thread:
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != self.parent:  # it died before the line above
                os._exit(1)


def _tell_of_deaths_only_when_asked(iterator: Any) -> None:
    """Keep torch's SIGCHLD handler from raising RuntimeError in the main thread, at whatever line that is.

    A worker that is gone is found when its next batch is asked for. That is early enough, and in the right place.
    """
    if iterator._worker_pids_set:
        signal_handling._remove_worker_pids(id(iterator))
        iterator._worker_pids_set = False
