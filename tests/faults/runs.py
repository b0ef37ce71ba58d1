"""Small runs that faults are injected into, and what tells whether one came out right.

Every run trains the same 24 steps on a packed file of its own. The reference is the same run without a fault: what a
fault leaves behind is continued by the same command, and must end with the same numbers and the same weights, or be
refused in words.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tests import forked
from tests.launching_command import ROOT, metrics

NUM_STEPS = 24
DEADLINE_S = 150.0  # of one start; a run takes a few seconds on an idle machine
EXIT_CODES = {0, 2, 3, 4, 5, 6, 7, 75, 130}  # docs/contract.md; 1 is anything else
TIMES = ("time", "attempt", "throughput/", "memory/")  # what may differ between two equal runs
PARAMETERS = (f"NUM_STEPS={NUM_STEPS}", "EVAL_EVERY=6", "CHECKPOINT_EVERY=4", "GPT2.dropout=0.1")


@dataclass
class Ended:
    """How one start of a run ended.

    Args:
        code: Its exit code; negative for a signal, None when it did not end within the deadline.
        text: What it printed.
    """

    code: int | None
    text: str

    @property
    def is_raw(self) -> bool:
        """Whether a user reads a traceback, or an exit code that is in no list."""
        return "Traceback (most recent call last)" in self.text or (
            self.code is not None and self.code >= 0 and self.code not in EXIT_CODES
        )


@dataclass
class Run:
    """One run folder with its data, and the command that starts and continues it.

    Args:
        folder: Holds the data and runs/r.
        gin_params: Bindings besides those of every run.
        environment: Variables besides this process's.
        runs_dir: Where the run folder is, if not in the folder.
    """

    folder: Path
    gin_params: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)
    runs_dir: Path | None = None

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        if not self.data.exists():
            write_data(self.data)

    @property
    def data(self) -> Path:
        return self.folder / "own.packed"

    @property
    def path(self) -> Path:
        return (self.runs_dir or self.folder / "runs") / "r"

    def start(self) -> subprocess.Popen[str]:
        """The command, in a group of its own, its output in a file."""
        words = [sys.executable, str(ROOT / "launch.py"), "--gin_file", "debug/tiny.gin"]
        given = (*PARAMETERS, f"DATA='{self.data}'", f"VAL_DATA='{self.data}'", *self.gin_params)
        for one in given:
            words += ["--gin_param", one]
        words += ["--name", "r", "--runs_dir", str(self.path.parent)]
        with open(self.folder / "output", "w") as output:
            process: subprocess.Popen[str] = forked.Popen(
                words,
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
                env={**os.environ, "OMP_NUM_THREADS": "1", "WANDB_MODE": "disabled", **self.environment},
            )
        return process

    def wait(self, process: subprocess.Popen[str]) -> Ended:
        """To its end; past the deadline the whole group is killed."""
        try:
            code = process.wait(DEADLINE_S)
        except subprocess.TimeoutExpired:
            code = None
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return Ended(code, (self.folder / "output").read_text(errors="replace"))

    def to_the_end(self) -> Ended:
        """Start it and wait."""
        return self.wait(self.start())

    def reach(self, process: subprocess.Popen[str], step: int) -> None:
        """Wait until a step is logged, or the process has ended."""
        deadline = time.monotonic() + DEADLINE_S
        while process.poll() is None and time.monotonic() < deadline:
            with suppress(OSError, ValueError):
                if any(line["step"] >= step for line in metrics(self.path)):
                    return
            time.sleep(0.01)

    def result(self) -> tuple[Any, ...]:
        """What must be equal to the bit: every logged number and text, and the files of the last checkpoint."""
        logged = [{k: v for k, v in line.items() if not k.startswith(TIMES)} for line in metrics(self.path)]
        last = self.path / "checkpoints" / f"step-{NUM_STEPS:08d}"
        weights = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in last.glob("data-*.bin")}
        ranks = [json.loads(path.read_text()) | {"save_id": ""} for path in sorted(last.glob("rank-*.json"))]
        return logged, (weights, ranks)

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


def write_data(path: Path, seed: int = 0, tokens: int = 40_000) -> None:
    """A packed file of the tiny model's vocabulary."""
    from modlib.data.packed.writer import PackedFileWriter

    ids = np.random.default_rng(seed).integers(0, 4096, tokens)
    with PackedFileWriter(path, vocab_size=4096, overwrite=True) as writer:
        writer.write(ids, num_bytes_of_text=4 * tokens)
