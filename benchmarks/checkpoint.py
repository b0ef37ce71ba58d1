"""Checkpoints: save and load of a model with AdamW state, as a fraction of raw write + fsync and raw read (the
fastest of three ways to do it).

    python benchmarks/checkpoint.py [--size 100] [--rounds 7] [--folder DIR]

Every variant ends with its bytes on the disk (fsync). modlib's times include SHA-256 of every byte, on save and on
load, the check for NaN and Inf, and the commit; the peers hash nothing. A load goes into a model that exists and an
optimizer without state, as when a run resumes; "cold" after the files were dropped from the page cache, "warm" straight
after that. The numbers depend on the disk, so only the ratios within one run mean anything.
"""

from __future__ import annotations

import argparse
import mmap
import os
import shutil
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from interleave import report
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

from modlib.checkpointing.loading import load, newest
from modlib.checkpointing.writing import save

NUM_THREADS = 2
PIECE = 4 << 20
RAW: dict[str, dict[str, Any]] = {
    "2 files, 2 threads": {"num_threads": 2, "num_files": 2, "direct": False},
    "16 files, 4 threads": {"num_threads": 4, "num_files": 16, "direct": False},
    "16 files, 8 threads, direct": {"num_threads": 8, "num_files": 16, "direct": True},
}


def build(millions: float) -> tuple[nn.Module, torch.optim.Optimizer]:
    """A stack of transformer-shaped linear layers with about this many million parameters, after one AdamW step."""
    dim = 768
    layers = max(1, round(millions * 1e6 / (12 * dim * dim)))
    blocks = [
        nn.Sequential(nn.Linear(dim, 3 * dim), nn.Linear(dim, dim), nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim))
        for _ in range(layers)
    ]
    model = nn.Sequential(*blocks)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    return model, optimizer


def drop_from_page_cache(folder: Path) -> None:
    """Make the next read come from the disk; the files must be on the disk already."""
    for path in folder.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def raw_write(folder: Path, memory: memoryview, num_threads: int, num_files: int, direct: bool) -> None:
    """Write and synchronise files from memory that is there already, past the page cache or through it."""
    share = memory.nbytes // num_files // PIECE * PIECE

    def write(index: int) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | (os.O_DIRECT if direct else 0)
        descriptor = os.open(folder / f"{index}.bin", flags)
        for begin in range(0, share, PIECE):
            start = index * share + begin
            os.pwrite(descriptor, memory[start : start + PIECE], begin)
        os.fsync(descriptor)
        os.close(descriptor)

    with ThreadPoolExecutor(num_threads) as threads:
        list(threads.map(write, range(num_files)))


def raw_read(folder: Path, memory: memoryview, num_threads: int, num_files: int, direct: bool) -> None:
    """Read those files into memory that is there already."""
    share = memory.nbytes // num_files // PIECE * PIECE

    def read(index: int) -> None:
        descriptor = os.open(folder / f"{index}.bin", os.O_RDONLY | (os.O_DIRECT if direct else 0))
        for begin in range(0, share, PIECE):
            start = index * share + begin
            os.preadv(descriptor, [memory[start : start + PIECE]], begin)
        os.close(descriptor)

    with ThreadPoolExecutor(num_threads) as threads:
        list(threads.map(read, range(num_files)))


def torch_save(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """One file of torch.save, synchronised."""
    with open(folder / "checkpoint.pt", "wb") as file:
        torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
        file.flush()
        os.fsync(file.fileno())


def torch_load(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """torch.load of that file into the model and the optimizer."""
    state = torch.load(folder / "checkpoint.pt", weights_only=True)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])


def dcp_save(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """torch's distributed checkpoint with its own file format and 2 threads."""
    model_state, optimizer_state = get_state_dict(model, optimizer)
    writer = dcp.FileSystemWriter(folder / "dcp", thread_count=NUM_THREADS, overwrite=True)
    dcp.save({"model": model_state, "optimizer": optimizer_state}, storage_writer=writer, no_dist=True)


def dcp_load(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """torch's distributed checkpoint back into the model and the optimizer."""
    model_state, optimizer_state = get_state_dict(model, optimizer)
    state: dict[str, Any] = {"model": model_state, "optimizer": optimizer_state}
    dcp.load(state, storage_reader=dcp.FileSystemReader(folder / "dcp"), no_dist=True)
    set_state_dict(model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])


def modlib_save(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """modlib's save, with every byte hashed and checked."""
    save(folder, step=1, model=model, optimizer=optimizer)


def modlib_load(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """modlib's load, with every byte hashed."""
    checkpoint = newest(folder)
    assert checkpoint is not None
    load(checkpoint, model=model, optimizer=optimizer)


def timed(run: Callable[[], object]) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=float, default=100, help="millions of parameters")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--folder", type=Path, help="where to write; default a temporary folder")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    model, optimizer = build(arguments.size)
    num_bytes = 12 * sum(parameter.numel() for parameter in model.parameters())
    memory = memoryview(mmap.mmap(-1, num_bytes))
    memory[:] = os.urandom(PIECE) * (num_bytes // PIECE) + bytes(num_bytes % PIECE)
    raw = {f"raw {name}": partial(raw_write, memory=memory, **how) for name, how in RAW.items()}
    writes: dict[str, Callable[[Path], object]] = {
        **raw,
        "modlib": partial(modlib_save, model=model, optimizer=optimizer),
        "torch.save": partial(torch_save, model=model, optimizer=optimizer),
        "DCP": partial(dcp_save, model=model, optimizer=optimizer),
    }
    target, _ = build(arguments.size)

    def resumed(read: Callable[..., object], folder: Path) -> float:
        empty = torch.optim.AdamW(target.parameters(), lr=1e-4)
        return timed(lambda: read(folder, model=target, optimizer=empty))

    def read_now(read: Callable[..., object], folder: Path) -> float:
        return timed(partial(read, folder))

    raw_reads = {name: partial(raw_read, memory=memory, **how) for name, how in RAW.items()}
    reads: dict[str, Callable[[Path], float]] = {
        **{f"raw {name}": partial(read_now, read) for name, read in raw_reads.items()},
        "modlib": partial(resumed, modlib_load),
        "torch.save": partial(resumed, torch_load),
        "DCP": partial(resumed, dcp_load),
    }
    seconds: dict[str, dict[str, list[float]]] = {"save": {}, "load, cold": {}, "load, warm": {}}
    for round_number in range(arguments.rounds + 1):
        for name, write in writes.items():
            folder = Path(tempfile.mkdtemp(prefix="modlib-benchmark-", dir=arguments.folder))
            try:
                saved = timed(partial(write, folder))
                drop_from_page_cache(folder)
                cold = reads[name](folder)
                warm = reads[name](folder)
            finally:
                shutil.rmtree(folder)
            os.sync()
            if round_number > 0:  # the first round warms up
                for what, value in (("save", saved), ("load, cold", cold), ("load, warm", warm)):
                    seconds[what].setdefault(name, []).append(value)
    for what, times in seconds.items():
        limit = min((name for name in times if name.startswith("raw")), key=lambda name: statistics.median(times[name]))
        title = f"checkpoint {what}, {num_bytes / 1e9:.2f} GB, {arguments.rounds} rounds"
        report(title, times, limit, "the limit is the fastest raw variant; modlib hashes every byte, nothing else does")


if __name__ == "__main__":
    main()
