"""Random 1,024-token windows from a 200M-token uint16 file: the real dataset, sampler, collator and loader.

    python benchmarks/data.py            # 400 MB in the folder for temporary files, from the page cache
    python benchmarks/data.py --tokens 2_000_000 --rounds 3

Each variant makes the same number of batches of inputs and targets in every round, in turn; speeds are medians of the
rounds against nanoGPT's get_batch. The limits are the same bytes copied in one piece (memcpy) and converted to int64.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from interleave import interleave, report

from modlib.data.collate import LMCollator
from modlib.data.loader import DataLoader
from modlib.data.packed_dataset import PackedDataset
from modlib.data.packed_file import PackedFile
from modlib.data.packed_header import HEADER_BYTES
from modlib.data.packed_writer import PackedFileWriter
from modlib.data.sampler import ShuffledSampler

VOCAB_SIZE = 50_257
CHUNK = 1 << 22


def write_tokens(path: Path, num_tokens: int) -> None:
    """A packed file of uniform random ids."""
    rng = np.random.default_rng(0)
    with PackedFileWriter(path, vocab_size=VOCAB_SIZE) as writer:
        for start in range(0, num_tokens, CHUNK):
            writer.write(rng.integers(0, VOCAB_SIZE, min(CHUNK, num_tokens - start), dtype=np.uint16))


def nanogpt(path: Path, num_tokens: int, batch_size: int, seq_len: int, batches: int) -> None:
    """In the manner of nanoGPT's get_batch: a memmap per batch, then a Python loop of slices made int64 one by one."""
    for _ in range(batches):
        data = np.memmap(path, dtype=np.uint16, mode="r", offset=HEADER_BYTES, shape=(num_tokens,))
        ix = torch.randint(len(data) - seq_len, (batch_size,))
        torch.stack([torch.from_numpy(data[i : i + seq_len].astype(np.int64)) for i in ix])
        torch.stack([torch.from_numpy(data[i + 1 : i + 1 + seq_len].astype(np.int64)) for i in ix])


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
    loader = DataLoader(dataset=dataset, sampler=sampler, collate=LMCollator(), micro_batch_size=batch_size)
    with loader:
        next(loader.iterate())
        return opened - started, time.perf_counter() - opened


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=lambda text: int(text.replace("_", "")), default=200_000_000)
    parser.add_argument("--seq_len", type=int, default=1024)
    parser.add_argument("--batch_size", type=int, default=12, help="nanoGPT's default")
    parser.add_argument("--batches", type=int, default=200, help="per variant and round")
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    batch_size, seq_len, batches = options.batch_size, options.seq_len, options.batches

    with tempfile.TemporaryDirectory() as folder:
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
                dataset=dataset, sampler=sampler, collate=collate, micro_batch_size=batch_size, **settings
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
            "nanoGPT get_batch": lambda: nanogpt(path, options.tokens, batch_size, seq_len, batches),
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


if __name__ == "__main__":
    main()
