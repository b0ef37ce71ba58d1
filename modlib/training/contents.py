"""A run's data is what it says it is: hashed beside the start-up, compared between ranks and with the checkpoint."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch.distributed as dist

from modlib.data.datasets.dataset import packed_files
from modlib.distributed.meeting import this_host
from modlib.distributed.process_group import World
from modlib.runtime.errors import DataError, StoppedEarly
from modlib.runtime.signals import StopRequest
from modlib.runtime.units import format_bytes, format_seconds
from modlib.runtime.watchdog import UNHURRIED, Watchdog

logger = logging.getLogger("modlib")

_LOOKS_S = 1.0
_TOLD_EVERY_S = 10.0

Files = list[dict[str, str]]
"""Path and SHA-256 of each packed file of a dataset."""


def data_of(dataset: Any, evaluators: Sequence[Any]) -> dict[str, Any]:
    """Every dataset of a run by its use: "train", and "val/<name>" of each evaluator that has data."""
    held_out = {f"val/{one.name}": one.dataset for one in evaluators if hasattr(one, "dataset")}
    return {"train": dataset, **held_out}


def files_of(data: Mapping[str, Any]) -> dict[str, Files]:
    """The packed files behind each use, with the hashes of their headers, which `Contents` compares with the files."""
    return {
        use: [{"path": str(packed.path.absolute()), "sha256": packed.sha256} for packed in packed_files(dataset)]
        for use, dataset in data.items()
    }


def require_same_files(before: Mapping[str, Files], now: Mapping[str, Files], where: str) -> None:
    """Refuse files with other contents than a checkpoint or another rank had; they may have moved.

    Args:
        before: What was read there, by use; a use that only one side has is not compared.
        now: What is read here.
        where: Completes "must be what ... read".

    Raises:
        DataError: The contents differ; the file is named.
    """
    for use, here in now.items():
        there = before.get(use, here)
        for old, new in zip(there, here):
            if old["sha256"] != new["sha256"]:
                raise DataError(
                    f"contents of {new['path']}, data of {use} (SHA-256 {new['sha256'][:12]}), must be what {where} "
                    f"read ({old['sha256'][:12]}, {old['path']}); put that file back, or start a new run with --name"
                )
        if len(there) != len(here):
            raise DataError(
                f"packed files of {use} ({len(here)}) must be as many as {where} read ({len(there)}); put them back, "
                "or start a new run with --name"
            )


class Contents:
    """Compares the contents of all packed files of a run with their headers, in a thread, beside the start-up.

    Only files that were not hashed before as they are now are read: see `PackedFile.verify_once`.

    Args:
        data: Every dataset, by use.
        world: Each rank begins with another file, so that those of a machine share the work.
    """

    def __init__(self, data: Mapping[str, Any], world: World) -> None:
        self._data = dict(data)
        self._alive: Callable[[], object] = lambda: None  # the start-up has a limit of its own
        files = [packed for dataset in data.values() for packed in packed_files(dataset)]
        first = len(files) * world.rank // world.size
        self._files = files[first:] + files[:first]
        self._error: BaseException | None = None
        self._beats = 0
        for packed in self._files:
            packed.reading = _Reading(packed.path, self._beat)
        self._thread = threading.Thread(target=self._verify, name="modlib-hash", daemon=True)
        self._thread.start()

    def _beat(self) -> None:
        self._beats += 1
        self._alive()

    def _verify(self) -> None:
        try:
            for packed in self._files:
                packed.verify_once()
        except BaseException as error:
            self._error = error

    def require_sound(self, world: World, watchdog: Watchdog, stop: StopRequest) -> None:
        """Wait until all ranks have compared everything, and compare the ranks; a collective call.

        Raises:
            DataError: A file is not what its header says, or ranks have files with other contents.
            StoppedEarly: A signal came in the meantime.
        """
        watchdog.doing("waiting until the data is hashed", UNHURRIED)
        before: list[int] = []
        while True:
            self._thread.join(_LOOKS_S)
            states = _gathered((self._thread.is_alive(), self._error is not None, self._beats, stop.signal), world)
            if not any(busy for busy, *_ in states) or any(failed for _, failed, *_ in states):
                break
            if (signal := next((one for *_, one in states if one), None)) is not None:
                raise StoppedEarly(signal)
            if (beats := [state[2] for state in states]) != before:
                watchdog.alive()
                before = beats
        if self._error is not None and not isinstance(self._error, DataError):
            raise self._error
        fingerprints = {use: str(getattr(dataset, "fingerprint", "")) for use, dataset in self._data.items()}
        problem = None if self._error is None else str(self._error)
        ranks = _gathered((this_host(), problem, files_of(self._data), fingerprints), world)
        if self._error is not None:
            raise self._error
        for rank, (host, problem, _, _) in enumerate(ranks):
            if problem is not None:
                raise DataError(f"data of rank {rank} on {host} cannot be used: {problem}")
        for _, _, files, _ in ranks:
            require_same_files(ranks[0][2], files, f"rank 0 on {ranks[0][0]}")
        for rank, (host, _, _, found) in enumerate(ranks):
            for use, fingerprint in found.items():
                if fingerprint != ranks[0][3][use]:
                    raise DataError(
                        f"data of {use} on rank {rank} on {host} ({fingerprint}) must be that of rank 0 on "
                        f"{ranks[0][0]} ({ranks[0][3][use]}); copy the same files to all hosts"
                    )
        self._alive = watchdog.alive  # of a file that is hashed again during the run


class _Reading:
    """Tells how far the hashing of one file is, when it takes long."""

    def __init__(self, path: Path, beat: Callable[[], object]) -> None:
        self.path, self.beat = path, beat
        self.started = self.told = 0.0
        self.done = 0

    def __call__(self, done: int, total: int) -> None:
        self.beat()
        now = time.monotonic()
        if not self.started or done < self.done:
            self.started = self.told = now
        self.done = done
        if done and now - self.told >= _TOLD_EVERY_S:
            self.told = now
            rate = done / (now - self.started)
            logger.info(
                "hashing %s for the first time as it is now: %s of %s, %s left",
                self.path, format_bytes(done), format_bytes(total), format_seconds((total - done) / rate),
            )  # fmt: skip


def _gathered(mine: Any, world: World) -> list[Any]:
    if world.size == 1:
        return [mine]
    found: list[Any] = [None] * world.size
    dist.all_gather_object(found, mine, group=world.control_group)
    return found
