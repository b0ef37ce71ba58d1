from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from modlib.data.datasets.packed_dataset import PackedDataset
from modlib.data.packed.writer import PackedFileWriter
from modlib.runtime.errors import DataError
from modlib.runtime.signals import LEFT_TO_PARENT, STOP_SIGNALS
from tests.conftest import ROOT
from tests.data.batches.test_loader import (
    Numbers,
    make_loader,
    samples,
    steps,
)
from tests.data.conftest import MakePacked


class Unpicklable(Exception):
    def __init__(self, number: int, reason: str) -> None:
        super().__init__(f"{number}: {reason}")


class Broken(Numbers):
    def __getitem__(self, index: int) -> np.ndarray:
        raise Unpicklable(index, "cannot be read")


def worker_pids(loader: Any) -> list[int]:
    return loader._workers.pids


def gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def wait_until_gone(pids: list[int], timeout_s: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not all(gone(pid) for pid in pids):
        assert time.monotonic() < deadline, f"still running: {[pid for pid in pids if not gone(pid)]}"
        time.sleep(0.02)


def test_workers_live_on_between_iterations_and_end_with_close() -> None:
    loader = make_loader(Numbers(40), micro_batch_size=2, num_workers=2)
    steps(loader, 0, 3)
    pids = worker_pids(loader)
    steps(loader, 7, 3)
    assert worker_pids(loader) == pids
    assert len(pids) == 2
    loader.close()
    assert all(gone(pid) for pid in pids)
    assert len(steps(loader, 0, 2)) == 2  # started anew
    loader.close()


def test_workers_leave_stop_signals_to_the_parent() -> None:
    with make_loader(Numbers(40), micro_batch_size=2, num_workers=2) as loader:
        batches = loader.iterate()
        next(batches)
        for pid in worker_pids(loader):
            for number in LEFT_TO_PARENT:
                os.kill(pid, number)
        for step in range(1, 10):
            assert samples(next(batches)) == samples(loader.batch(step))


def test_what_stops_a_run_is_left_to_the_parent() -> None:
    assert set(STOP_SIGNALS) < set(LEFT_TO_PARENT)


def test_a_killed_worker_is_a_data_error_with_its_pid_wherever_its_death_is_seen() -> None:
    with make_loader(Numbers(40), micro_batch_size=2, num_workers=2) as loader:
        batches = loader.iterate()
        next(batches)
        victim = worker_pids(loader)[0]
        os.kill(victim, signal.SIGKILL)
        wait_until_gone([victim])  # its SIGCHLD comes here, between two batches, where torch would raise
        deadline = time.monotonic() + 0.2
        while time.monotonic() < deadline:
            sum(range(1000))
        with pytest.raises(DataError, match=rf"data loader worker {victim} \(exit code -9\) ended by itself; it may"):
            for _ in batches:
                pass
    assert DataError.exit_code == 3


def test_an_error_that_does_not_pickle_still_arrives() -> None:
    refused = pytest.raises(RuntimeError, match=r"Unpicklable in a loader worker: \d+: cannot be read")
    with make_loader(Broken(40), micro_batch_size=2, num_workers=1) as loader, refused:
        next(loader.iterate())


@pytest.mark.slow
def test_spawned_workers(make_packed: MakePacked) -> None:
    dataset = PackedDataset(path=str(make_packed(200)), seq_len=5)
    with make_loader(dataset, micro_batch_size=2, num_workers=1, start_method="spawn") as loader:
        found = steps(loader, 3, 4)
    reference = make_loader(dataset, micro_batch_size=2, prefetch=0)
    assert found == steps(reference, 3, 4)


PARENT = """
import sys, time
from tests.data.batches.test_loader import make_loader
from modlib.data.datasets.packed_dataset import PackedDataset
if __name__ == "__main__":
    loader = make_loader(PackedDataset(path=sys.argv[1], seq_len=5), micro_batch_size=2, num_workers=2)
    next(loader.iterate())
    print(*loader._workers.pids, flush=True)
    time.sleep(60)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ties a child to its parent's death")
def test_workers_end_with_a_killed_parent(tmp_path: Path) -> None:
    path = tmp_path / "data.packed"
    with PackedFileWriter(path, vocab_size=500) as writer:
        writer.write(np.arange(500))
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, str(path)], stdout=subprocess.PIPE, text=True, cwd=ROOT
    ) as parent:
        try:
            assert parent.stdout is not None
            pids = [int(pid) for pid in parent.stdout.readline().split()]
            assert len(pids) == 2
        finally:
            parent.kill()
    wait_until_gone(pids, timeout_s=3.0)
