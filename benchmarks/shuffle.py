"""Shuffling a packed file that is larger than the memory limit, against a plain copy of it.

    python benchmarks/shuffle.py                       # 256 MB of tokens, 64 MiB of memory
    python benchmarks/shuffle.py --megabytes 1024 --memory_mib 256 --rounds 3

Each round makes a copy (shutil.copyfile and fsync), shuffles within the limit, shuffles in memory, and mixes the file
with itself. Documents have 1 to 2,000 tokens of 2 bytes. The page cache stays as it is.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
from interleave import interleave, report

from modlib.data.packed.writer import PackedFileWriter
from modlib.data.rewriting.mix import mix
from modlib.data.rewriting.shuffle import shuffle


def make(path: Path, num_bytes: int) -> None:
    """A packed file of about so many bytes of random tokens."""
    rng = np.random.default_rng(0)
    with PackedFileWriter(path, vocab_size=50_000) as writer:
        while 2 * writer.num_tokens < num_bytes:
            lengths = rng.integers(1, 2001, 1000)
            writer.write_documents(rng.integers(0, 50_000, int(lengths.sum()), dtype=np.uint16), lengths)


def copy(source: Path, target: Path) -> None:
    """What any rewriting has to do at least."""
    shutil.copyfile(source, target)
    with open(target, "rb+") as file:
        os.fsync(file.fileno())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=float, default=256)
    parser.add_argument("--memory_mib", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", help="for temporary files; about three times the size")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        source, out = Path(folder) / "in.packed", Path(folder) / "out.packed"
        make(source, int(options.megabytes * 1e6))
        large = int(16 * options.megabytes)
        variants = {
            "copy and fsync": lambda: copy(source, out),
            f"shuffle in {options.memory_mib} MiB": lambda: shuffle(
                source, out, seed=1, memory_mib=options.memory_mib, overwrite=True
            ),
            "shuffle in memory": lambda: shuffle(source, out, seed=1, memory_mib=large, overwrite=True),
            f"mix with itself in {options.memory_mib} MiB, half of each": lambda: mix(
                [source, source], out, weights=[1, 1], num_tokens=int(options.megabytes * 5e5), seed=1,
                memory_mib=options.memory_mib, overwrite=True,
            ),
        }  # fmt: skip
        title = f"{source.stat().st_size / 1e6:.0f} MB of tokens"
        report(title, interleave(variants, options.rounds, tell=True), "copy and fsync")


if __name__ == "__main__":
    main()
