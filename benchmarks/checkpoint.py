"""Checkpoints: save and load of a model with AdamW state, as a fraction of raw write + fsync and raw read.

    python benchmarks/checkpoint.py [--size 100] [--rounds 7] [--folder DIR]

Every variant ends with its bytes on the disk (fsync). modlib's times include SHA-256 of every byte, on save and on
load, the check for NaN and Inf, and the commit; the peers hash nothing. A load goes into a model that exists and an
optimizer without state, as when a run resumes; "cold" after the files were dropped from the page cache, "warm" straight
after that. The numbers depend on the disk, so only the ratios within one run mean anything.
"""

from __future__ import annotations

import argparse
import os
import shutil
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

from modlib.checkpointing import load, newest, save

NUM_THREADS = 2
PIECE = 1 << 20


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


def raw_write(folder: Path, buffers: list[memoryview]) -> None:
    """Write one file per thread and synchronise it: the limit for a save."""

    def write(index: int) -> None:
        descriptor = os.open(folder / f"{index}.bin", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for begin in range(0, buffers[index].nbytes, PIECE):
            os.pwrite(descriptor, buffers[index][begin : begin + PIECE], begin)
        os.fsync(descriptor)
        os.close(descriptor)

    with ThreadPoolExecutor(NUM_THREADS) as threads:
        list(threads.map(write, range(len(buffers))))


def raw_read(folder: Path, buffers: list[memoryview]) -> None:
    """Read those files into memory that is there already: the limit for a load."""

    def read(index: int) -> None:
        descriptor = os.open(folder / f"{index}.bin", os.O_RDONLY)
        for begin in range(0, buffers[index].nbytes, PIECE):
            os.preadv(descriptor, [buffers[index][begin : begin + PIECE]], begin)
        os.close(descriptor)

    with ThreadPoolExecutor(NUM_THREADS) as threads:
        list(threads.map(read, range(len(buffers))))


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
    half = num_bytes // NUM_THREADS
    memory = [torch.randint(0, 255, (half,), dtype=torch.uint8).numpy().data for _ in range(NUM_THREADS)]
    writes: dict[str, Callable[[Path], object]] = {
        "raw pwrite + fsync": partial(raw_write, buffers=memory),
        "modlib": partial(modlib_save, model=model, optimizer=optimizer),
        "torch.save": partial(torch_save, model=model, optimizer=optimizer),
        "DCP": partial(dcp_save, model=model, optimizer=optimizer),
    }
    target, _ = build(arguments.size)

    def resumed(read: Callable[..., object], folder: Path) -> float:
        empty = torch.optim.AdamW(target.parameters(), lr=1e-4)
        return timed(lambda: read(folder, model=target, optimizer=empty))

    reads: dict[str, Callable[[Path], float]] = {
        "raw preadv": lambda folder: timed(lambda: raw_read(folder, memory)),
        "modlib": partial(resumed, modlib_load),
        "torch.load": partial(resumed, torch_load),
        "DCP": partial(resumed, dcp_load),
    }
    seconds: dict[str, dict[str, list[float]]] = {"save": {}, "load, cold": {}, "load, warm": {}}
    for round_number in range(arguments.rounds + 1):
        for (name, write), (read_name, read) in zip(writes.items(), reads.items(), strict=True):
            folder = Path(tempfile.mkdtemp(prefix="modlib-benchmark-", dir=arguments.folder))
            try:
                saved = timed(partial(write, folder))
                drop_from_page_cache(folder)
                cold = read(folder)
                warm = read(folder)
            finally:
                shutil.rmtree(folder)
            os.sync()
            if round_number > 0:  # the first round warms up
                seconds["save"].setdefault(name, []).append(saved)
                seconds["load, cold"].setdefault(read_name, []).append(cold)
                seconds["load, warm"].setdefault(read_name, []).append(warm)
    size = f"{num_bytes / 1e9:.2f} GB, {arguments.rounds} rounds"
    report(f"checkpoint save, {size}", seconds["save"], "raw pwrite + fsync", "goal: modlib at least 0.8")
    report(f"checkpoint load, cold, {size}", seconds["load, cold"], "raw preadv", "goal: modlib at least 0.8")
    report(f"checkpoint load, warm, {size}", seconds["load, warm"], "raw preadv", "hashing alone takes longer")


if __name__ == "__main__":
    main()
