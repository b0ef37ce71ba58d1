"""A seeded soak against the contract: `python -m tests.faults.report [--minutes 14] [--seed 0] [--only KIND]`.

Injects faults of every kind in turn until the time is over, and prints the table of docs/contract.md. Each fault is
drawn by a number, so that `--only "signals" --first 17 --count 1` repeats one. Exits with 1 when a promise was broken.
Full disks are small file systems of their own, for which it must be root; else that kind is left out.
"""

from __future__ import annotations

import argparse
import itertools
import os
import random
import sys
import tempfile
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import get_args

from tests import forked
from tests.faults.kinds import KINDS, Verdict
from tests.faults.runs import Run

BROKEN = ("silent change", "hang", "raw", "leak")


def soak(kinds: list[str], *, minutes: float, seed: int, first: int, count: int | None) -> dict[str, Counter[str]]:
    """Inject faults in turn; returns how each kind's came out."""
    ends = time.monotonic() + 60 * minutes
    found: dict[str, Counter[str]] = defaultdict(Counter)
    with tempfile.TemporaryDirectory(prefix="modlib-faults-") as name:
        folder = Path(name)
        reference = Run(folder / "reference")
        ended = reference.to_the_end()
        if ended.code != 0:
            sys.exit(f"the run without a fault ended with exit code {ended.code}:\n{ended.text}")
        expected = reference.result()
        numbers = itertools.count(first) if count is None else range(first, first + count)
        for number, kind in ((number, kind) for number in numbers for kind in kinds):
            if time.monotonic() > ends:
                break
            run = Run(folder / f"{kind.replace(' ', '-')}-{number}")
            what, verdict, text = KINDS[kind](run, random.Random(f"{seed}/{kind}/{number}"), expected)
            found[kind][verdict] += 1
            if verdict in BROKEN or count is not None:
                print(f"{kind} #{number}: {what}: {verdict}: {text}", file=sys.stderr, flush=True)
            run.remove()
    return found


def table(found: dict[str, Counter[str]]) -> str:
    """As Markdown; "leak" is a secret that was written, or code of a file that was executed."""
    verdicts = get_args(Verdict)
    rows = [f"| fault | injected | {' | '.join(verdicts)} |", f"|---|{'---|' * (len(verdicts) + 1)}"]
    total: Counter[str] = Counter()
    for kind, counts in found.items():
        total += counts
        rows.append(f"| {kind} | {counts.total()} | {' | '.join(str(counts[one]) for one in verdicts)} |")
    rows.append(f"| all | {total.total()} | {' | '.join(str(total[one]) for one in verdicts)} |")
    return "\n".join(rows)


def main() -> None:
    """Entry point of the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=14.0, help="stop after this time")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=KINDS, action="append", help="one kind; may be given several times")
    parser.add_argument("--first", type=int, default=0, help="number of the first fault of each kind")
    parser.add_argument("--count", type=int, help="faults of each kind; each is printed")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    kinds = [kind for kind in options.only or KINDS if kind != "full disk" or os.geteuid() == 0]
    try:
        found = soak(kinds, minutes=options.minutes, seed=options.seed, first=options.first, count=options.count)
    finally:
        forked.stop()
    print(table(found))
    sys.exit(any(counts[one] for counts in found.values() for one in BROKEN))


if __name__ == "__main__":
    main()
