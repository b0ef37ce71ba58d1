"""The real dataset, sampler, collator and loader: random windows, reading cold, opening a large file.

    python benchmarks/data.py            # windows: 400 MB in the folder for temporary files, from the page cache
    python benchmarks/data.py --tokens 2_000_000 --rounds 3
    python benchmarks/data.py --part cold      # the same file, forgotten by the page cache before every run
    python benchmarks/data.py --part opening   # 10^9 tokens of 10^7 documents, 2.1 GB; a new process each time

windows: each variant makes the same number of batches of inputs and targets in every round, in turn; speeds are medians
of the rounds against nanoGPT's get_batch. The limits are the same bytes copied in one piece (memcpy) and converted to
int64. cold: batches loaded when asked for and by the thread, with and without telling the system first which windows
are read. opening: from a process with everything imported to its first batch; PackedDocuments with no table of windows
in the cache, and once more with the table that this opening kept.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from interleave import interleave, report

from modlib.data.batches.collate import LMCollator
from modlib.data.batches.layout import BatchLayout
from modlib.data.batches.loader import DataLoader
from modlib.data.batches.sampler import ShuffledSampler
from modlib.data.datasets.packed_dataset import PackedDataset
from modlib.data.datasets.packed_documents import PackedDocuments
from modlib.data.packed.file import PackedFile
from modlib.data.packed.header import HEADER_BYTES
from modlib.data.packed.writer import PackedFileWriter

VOCAB_SIZE = 50_257
CHUNK = 1 << 22


def write_tokens(path: Path, num_tokens: int, document: int | None = None) -> None:
    """A packed file of uniform random ids, as one document, or in documents of so many tokens."""
    rng = np.random.default_rng(0)
    with PackedFileWriter(path, vocab_size=VOCAB_SIZE) as writer:
        chunk = CHUNK if document is None else CHUNK // document * document
        for start in range(0, num_tokens, chunk):
            ids = rng.integers(0, VOCAB_SIZE, min(chunk, num_tokens - start), dtype=np.uint16)
            if document is None:
                writer.write(ids)
            else:
                writer.write_documents(ids, np.full(len(ids) // document, document), 0)


def nanogpt(path: Path, num_tokens: int, batch_size: int, seq_len: int) -> tuple[torch.Tensor, torch.Tensor]:
    """In the manner of nanoGPT's get_batch: a memmap per batch, then a Python loop of slices made int64 one by one."""
    data = np.memmap(path, dtype=np.uint16, mode="r", offset=HEADER_BYTES, shape=(num_tokens,))
    ix = torch.randint(len(data) - seq_len, (batch_size,))
    inputs = torch.stack([torch.from_numpy(data[i : i + seq_len].astype(np.int64)) for i in ix])
    return inputs, torch.stack([torch.from_numpy(data[i + 1 : i + 1 + seq_len].astype(np.int64)) for i in ix])


def endless(make: Callable[[], Iterator[object]], batches: int) -> Callable[[], None]:
    """Take the next batches of one iteration that lives through all rounds."""
    source = make()

    def run() -> None:
        for _ in islice(source, batches):
            pass

    return run


def first_batch_s(path: Path, batch_size: int, seq_len: int) -> tuple[float, float]:
    """Seconds to open the packed file, and from there to the first batch."""
    started = time.perf_counter()
    dataset = PackedDataset(path=str(path), seq_len=seq_len)
    opened = time.perf_counter()
    sampler = ShuffledSampler(seed=0, num_samples=len(dataset))
    loader = DataLoader(dataset=dataset, sampler=sampler, collate=LMCollator(), layout=BatchLayout(batch_size))
    with loader:
        next(loader.iterate())
        return opened - started, time.perf_counter() - opened


def measure_windows(options: argparse.Namespace) -> None:
    """Speed against nanoGPT's get_batch, and the time to the first batch."""
    batch_size, seq_len, batches = options.batch_size, options.seq_len, options.batches
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        path = Path(folder) / "random.packed"
        write_tokens(path, options.tokens)
        tokens = PackedFile(path).tokens
        tokens.max()  # into the page cache
        dataset = PackedDataset(path=str(path), seq_len=seq_len)
        sampler = ShuffledSampler(seed=0, num_samples=len(dataset))
        collate = LMCollator()
        size = batch_size * (seq_len + 1)
        piece, target = np.ascontiguousarray(tokens[:size]), np.empty(size, np.uint16)
        loaders: list[DataLoader] = []

        def loader(**settings: int) -> DataLoader:
            made = DataLoader(
                dataset=dataset, sampler=sampler, collate=collate, layout=BatchLayout(batch_size), **settings
            )
            loaders.append(made)
            return made

        def in_parts() -> Iterator[object]:
            for step in range(1 << 62):
                yield collate(dataset.__getitems__(sampler.indices(step * batch_size, batch_size)))

        def kept_uint16() -> Iterator[object]:
            for step in range(1 << 62):
                yield dataset.__getitems__(sampler.indices(step * batch_size, batch_size))

        variants: dict[str, Callable[[], object]] = {
            "nanoGPT get_batch": lambda: [nanogpt(path, options.tokens, batch_size, seq_len) for _ in range(batches)],
            "dataset + sampler + collator": endless(in_parts, batches),
            "DataLoader, inline": endless(loader(prefetch=0).iterate, batches),
            "DataLoader, thread ahead": endless(loader().iterate, batches),
            "DataLoader, 2 workers": endless(loader(num_workers=2).iterate, batches),
            "dataset + sampler, uint16": endless(kept_uint16, batches),
            "limit: int64 of the same bytes": lambda: [piece.astype(np.int64) for _ in range(batches)],
            "limit: memcpy of the same bytes": lambda: [np.copyto(target, piece) for _ in range(batches)],
        }
        seconds = interleave(variants, options.rounds)
        for made in loaders:
            made.close()
        report(
            f"{batches} batches of {batch_size} x {seq_len} tokens from {options.tokens:,}",
            seconds,
            "nanoGPT get_batch",
            note="page cache warm; one process unless said otherwise",
        )
        opened, first = (min(column) for column in zip(*(first_batch_s(path, batch_size, seq_len) for _ in range(5))))
        print(f"opening {opened * 1000:.2f} ms, first batch after it {first * 1000:.2f} ms (best of 5)")


class ToldNothing(PackedDataset):
    """The dataset without reading ahead."""

    read_ahead = None  # type: ignore[assignment]


def seconds_of_batches(kind: type[PackedDataset], path: Path, options: argparse.Namespace, prefetch: int) -> float:
    """Seconds to take the first batches of a file that is opened anew."""
    dataset = kind(path=str(path), seq_len=options.seq_len)
    sampler = ShuffledSampler(seed=os.getpid() + time.monotonic_ns(), num_samples=len(dataset))
    loader = DataLoader(
        dataset=dataset,
        sampler=sampler,
        collate=LMCollator(),
        layout=BatchLayout(options.batch_size),
        prefetch=prefetch,
    )
    with loader:
        batches = loader.iterate()
        started = time.perf_counter()
        for _ in islice(batches, options.batches):
            pass
        return time.perf_counter() - started


def measure_cold(options: argparse.Namespace) -> None:
    """Milliseconds per batch from a file that is not, or is, in the page cache."""
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        path = Path(folder) / "random.packed"
        write_tokens(path, options.tokens)
        variants = {
            (cache, name, ahead): (kind, prefetch)
            for cache in ("cold", "warm")
            for name, prefetch in (("when asked", 0), ("by the thread", 2))
            for ahead, kind in (("not told", ToldNothing), ("told", PackedDataset))
        }
        found: dict[tuple[str, str, str], list[float]] = {variant: [] for variant in variants}
        with open(path, "rb") as file:
            for _ in range(options.rounds):
                for (cache, name, ahead), (kind, prefetch) in variants.items():
                    if cache == "cold":  # what is mapped is not forgotten, but no dataset is open now
                        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                    elif not prefetch and kind is ToldNothing:
                        while file.read(CHUNK):
                            pass
                        file.seek(0)
                    seconds = seconds_of_batches(kind, path, options, prefetch)
                    found[cache, name, ahead].append(1000 * seconds / options.batches)
    print(f"ms per batch of {options.batch_size} x {options.seq_len} tokens, {options.batches} batches a run")
    for (cache, name, ahead), times in found.items():
        ratio = statistics.median(a / b for a, b in zip(found[cache, name, "not told"], times, strict=True))
        spread = f"{min(times):.3f} to {max(times):.3f}"
        print(f"{cache}, {name}, {ahead}: median {statistics.median(times):.3f} ({spread}), speed {ratio:.2f}")


KINDS: dict[str, Callable[..., Any]] = {
    "PackedDataset": PackedDataset,
    "PackedDataset, documents apart": partial(PackedDataset, intra_document_masking=True),
    "PackedDocuments, in_order": partial(PackedDocuments, packing="in_order"),
    "PackedDocuments, best_fit": partial(PackedDocuments, packing="best_fit"),
}


def open_once(path: Path, kind: str, batch_size: int, seq_len: int) -> dict[str, float]:
    """Milliseconds to open, and from there to the first batch; MB by which memory rose meanwhile.

    "memory" is by how much its peak rose, pages of the file included; "own" what the process has more without those.
    """
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is what there is now
    peak, own = memory_mb("VmHWM"), memory_mb("RssAnon")
    started = time.perf_counter()
    dataset = KINDS[kind](path=str(path), seq_len=seq_len)
    opened = time.perf_counter()
    sampler = ShuffledSampler(seed=0, num_samples=len(dataset))
    loader = DataLoader(dataset=dataset, sampler=sampler, collate=LMCollator(), layout=BatchLayout(batch_size))
    with loader:
        next(loader.iterate())
        done = time.perf_counter()
        return {
            "opening": 1000 * (opened - started),
            "first batch": 1000 * (done - opened),
            "memory": memory_mb("VmHWM") - peak,
            "own": memory_mb("RssAnon") - own,
        }


def memory_mb(kind: str) -> float:
    """A number of /proc/self/status: VmHWM is the most resident memory since it was reset, RssAnon what is no file."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(kind))
    return int(line.split()[1]) * 1024 / 1e6


def measure_opening(options: argparse.Namespace) -> None:
    """Opening 10^9 tokens of 10^7 documents in a new process, first batch included."""
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        path = Path(folder) / "large.packed"
        write_tokens(path, options.documents * 100, document=100)
        cache = Path(folder) / "cache"
        environment = {**os.environ, "MODLIB_CACHE": str(cache)}
        found: dict[str, list[dict[str, float]]] = {}
        for _ in range(options.rounds):
            shutil.rmtree(cache, ignore_errors=True)
            for kind in KINDS:
                for which in (", no table", ", table there") if kind.startswith("PackedDocuments") else ("",):
                    sizes = ["--batch_size", str(options.batch_size), "--seq_len", str(options.seq_len)]
                    command = [sys.executable, __file__, "--open", str(path), kind, *sizes]
                    ran = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
                    found.setdefault(kind + which, []).append(json.loads(ran.stdout.splitlines()[-1]))
    print(f"medians of {options.rounds} rounds, {100 * options.documents:,} tokens, {options.documents:,} documents")
    for kind, rounds in found.items():
        opening, first, memory, own = (statistics.median(one[key] for one in rounds) for key in rounds[0])
        times = f"opening {opening:.1f} ms, first batch after it {first:.2f} ms"
        print(f"{kind}: {times}, memory {memory:.1f} MB, own {own:.1f} MB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    number = lambda text: int(text.replace("_", ""))  # noqa: E731
    parser.add_argument("--part", choices=["windows", "cold", "opening"], default="windows")
    parser.add_argument("--tokens", type=number, default=200_000_000, help="of windows and cold")
    parser.add_argument("--documents", type=number, default=10_000_000, help="of opening, 100 tokens each")
    parser.add_argument("--seq_len", type=int, default=1024)
    parser.add_argument("--batch_size", type=int, default=12, help="nanoGPT's default")
    parser.add_argument("--batches", type=int, default=200, help="per variant and round")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--folder", help="for the file; default that of temporary files")
    parser.add_argument("--open", nargs=2, metavar=("FILE", "KIND"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.open:
        path, kind = options.open
        print(json.dumps(open_once(Path(path), kind, options.batch_size, options.seq_len)))
        return
    {"windows": measure_windows, "cold": measure_cold, "opening": measure_opening}[options.part](options)


if __name__ == "__main__":
    main()
