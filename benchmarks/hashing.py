"""Comparing a packed file with its hash for the first time, against sha256sum and hashlib, and the second time.

    python benchmarks/hashing.py                       # 500 MB of tokens, in the page cache
    python benchmarks/hashing.py --megabytes 2000 --cold

Before each first time the file's change time is renewed, so that nothing is remembered of it. The first time reads
every byte, looks for the largest id as well, and remembers the hash; the second opens the file anew and finds it.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import statistics
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from interleave import interleave, report

from modlib.data.packed.file import PackedFile
from modlib.data.packed.writer import PackedFileWriter


def make(path: Path, num_bytes: int) -> None:
    """A packed file of about so many bytes of random tokens."""
    rng = np.random.default_rng(0)
    with PackedFileWriter(path, vocab_size=50_000) as writer:
        while 2 * writer.num_tokens < num_bytes:
            lengths = rng.integers(1, 2001, 1000)
            writer.write_documents(rng.integers(0, 50_000, int(lengths.sum()), dtype=np.uint16), lengths)


def file_digest(path: Path) -> None:
    with open(path, "rb") as file:
        hashlib.file_digest(file, "sha256")


def from_disk(path: Path, run: Callable[[], object]) -> Callable[[], object]:
    """The same after the page cache has forgotten the file."""

    def forgotten() -> object:
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)
        return run()

    return forgotten


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=float, default=500)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--cold", action="store_true", help="read from the disk each time")
    parser.add_argument("--folder", help="for the file")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        os.environ["MODLIB_CACHE"] = str(Path(folder) / "cache")
        path = Path(folder) / "in.packed"
        make(path, int(options.megabytes * 1e6))

        def first() -> None:
            path.chmod(0o600)
            PackedFile(path).verify_once()

        variants: dict[str, Callable[[], object]] = {
            "sha256sum": lambda: subprocess.run(["sha256sum", str(path)], check=True, capture_output=True),
            "hashlib.file_digest": lambda: file_digest(path),
            "modlib, first time": first,
        }
        if options.cold:
            variants = {name: from_disk(path, run) for name, run in variants.items()}
        seconds = interleave(variants, options.rounds, tell=True)
        where = "from the disk" if options.cold else "in the page cache"
        report(f"{path.stat().st_size / 1e6:.0f} MB {where}", seconds, "sha256sum")
        again = interleave({"again": lambda: PackedFile(path).verify_once()}, 20)["again"]
        print(f"second time: median {1000 * statistics.median(again):.2f} ms, at most {1000 * max(again):.2f} ms")


if __name__ == "__main__":
    main()
