"""launch.py as a user starts it, for tests: start, wait, kill, read what it left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tests import forked

ROOT = Path(__file__).resolve().parents[1]
NUMBERS = ("train/loss", "train/lr", "train/grad_norm", "val/validation/loss")


def command(gin_file: str, params: Sequence[str] = (), *flags: str) -> list[str]:
    words = [sys.executable, str(ROOT / "launch.py"), "--gin_file", gin_file]
    for param in params:
        words += ["--gin_param", param]
    return [*words, *flags]


def launch(
    gin_file: str, params: Sequence[str] = (), *flags: str, cwd: Path = ROOT, timeout_s: float = 120
) -> subprocess.CompletedProcess[str]:
    """Run to the end; on the deadline the whole process group is killed and the test fails."""
    with started(gin_file, params, *flags, cwd=cwd) as process:
        out, err = process.communicate(timeout=timeout_s)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


@contextmanager
def started(
    gin_file: str, params: Sequence[str] = (), *flags: str, cwd: Path = ROOT
) -> Iterator[subprocess.Popen[str]]:
    """The process, in a group of its own that is gone afterwards."""
    process = forked.Popen(
        command(gin_file, params, *flags),
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def wait_for_step(run: Path, step: int, process: subprocess.Popen[str], timeout_s: float = 240) -> None:
    """Until metrics.jsonl has reached a step."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if any(line["step"] >= step for line in metrics(run)):
            return
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.02)
    raise AssertionError(f"step {step} was not reached within {timeout_s} s")


def metrics(run: Path) -> list[dict[str, Any]]:
    """The complete lines of metrics.jsonl."""
    try:
        lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def numbers(run: Path) -> list[tuple[Any, ...]]:
    """What a run must repeat to the bit: (step, tokens, name, value) of every line, in order."""
    return [
        (line["step"], line["tokens"], name, line[name]) for line in metrics(run) for name in NUMBERS if name in line
    ]
