"""Ends a save with SIGKILL before each of its file operations in turn, and looks at what is left after each.

    python -m tests.checkpointing.crashes FOLDER SCENARIO

Prints one JSON line per crash point: the operation, whether the old or the new state was restored, and the names left.
A process of its own, because it forks, which wants a process without other threads.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import sys
from functools import partial
from pathlib import Path

from modlib.checkpointing.loading import restore_newest
from modlib.checkpointing.saving import CheckpointSaving
from modlib.checkpointing.strategies import SaveKMostRecent
from modlib.checkpointing.writing import save
from modlib.runtime import durable, faults
from tests.checkpointing.training import Run, fingerprint

SCENARIOS = ("next", "replace", "replace without exchange", "prune")


def trained(seed: int) -> Run:
    """A run with an optimizer state; the same for the same seed."""
    run = Run(seed=seed)
    run.train(2)
    return run


def save_new(scenario: str, folder: Path, run: Run) -> None:
    """The save that is interrupted."""
    if scenario == "prune":
        CheckpointSaving([partial(SaveKMostRecent, 1, every=1)]).save(folder, step=2, **run.parts)
    else:
        if scenario == "replace without exchange":
            durable.exchange = lambda first, second: False  # type: ignore[assignment]
        save(folder, step=1 if scenario.startswith("replace") else 2, **run.parts)


def crash_at(number: int, scenario: str, folder: Path, run: Run) -> bool:
    """Save in a child that is killed just before its operation of this number; whether it was still to come."""
    child = os.fork()
    if child == 0:
        counter = itertools.count()

        def count(point: str, detail: str) -> None:
            if next(counter) == number:
                (folder.parent / "operation").write_text(f"{point} {detail}")
                os.kill(os.getpid(), signal.SIGKILL)

        with faults.installed("fs.operation", count):
            save_new(scenario, folder, run)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)


def main() -> None:
    """Sweep over all crash points of one scenario."""
    root, scenario = Path(sys.argv[1]), sys.argv[2]
    old, new = trained(1), trained(2)
    states = {fingerprint(old): "old", fingerprint(new): "new"}
    save(root / "template", step=1, **old.parts)
    for number in itertools.count():
        folder = root / "checkpoints"
        shutil.copytree(root / "template", folder)
        crashed = crash_at(number, scenario, folder, new)
        run = Run(seed=3)
        restore_newest(folder, **run.parts)
        line = {
            "operation": (root / "operation").read_text() if crashed else "none",
            "restored": states.get(fingerprint(run), "neither"),
            "left": sorted(os.listdir(folder)),
        }
        print(json.dumps(line), flush=True)
        shutil.rmtree(folder)
        if not crashed:
            break


if __name__ == "__main__":
    main()
