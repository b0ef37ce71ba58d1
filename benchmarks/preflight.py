"""The preflight: seconds with four gloo ranks on this machine, and alone; the goal is 5 s with four.

python benchmarks/preflight.py [--ranks 4] [--rounds 15]
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def rank(folder: Path, rounds: int) -> None:
    """Take part as the rank that the environment describes; rank 0 prints."""
    from modlib.distributed.preflight import preflight
    from modlib.distributed.process_group import process_group

    with process_group() as world:
        seconds, findings = [], []
        for _ in range(rounds):
            began = time.perf_counter()
            findings += preflight(world, folder=folder, host=f"node{world.rank}", needed_bytes=1)
            seconds.append(time.perf_counter() - began)
    if world.rank == 0:
        median = statistics.median(seconds)
        print(
            f"{world.size} ranks: first {seconds[0]:.3f} s, median {median:.3f} s, slowest {max(seconds):.3f} s, "
            f"{len(findings)} findings in {rounds} rounds"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.folder:
        rank(Path(arguments.folder), arguments.rounds)
        return
    for size in (1, arguments.ranks):
        with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as meeting:
            common = os.environ | {
                "WORLD_SIZE": str(size),
                "MODLIB_RENDEZVOUS": f"file://{meeting}/store",
                "OMP_NUM_THREADS": "1",
                "GLOO_SOCKET_IFNAME": "lo",
            }
            command = [sys.executable, __file__, "--folder", folder, "--rounds", str(arguments.rounds)]
            ranks = [subprocess.Popen(command, env=common | {"RANK": str(number)}) for number in range(size)]
            codes = [process.wait() for process in ranks]
            if any(codes):
                sys.exit("a rank failed")


if __name__ == "__main__":
    main()
