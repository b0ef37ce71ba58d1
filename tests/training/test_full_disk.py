"""A checkpoint that cannot be written costs a warning and that checkpoint, not the run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from modlib.checkpointing import newest
from tests.launching_command import ROOT, command, metrics

FULL_AT_STEP_16 = """
import runpy, sys
from modlib.runtime import faults

def no_space(name, operation):
    if "step-00000016" in operation and operation.startswith("write"):
        raise OSError(28, "No space left on device")

sys.argv = sys.argv[1:]
with faults.installed("fs.operation", no_space):
    runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_training_goes_on_without_the_checkpoint(tmp_path: Path) -> None:
    words = command("debug/tiny.gin", ["NUM_STEPS=24"], "--runs_dir", str(tmp_path), "--name", "run")[1:]
    done = subprocess.run(
        [sys.executable, "-c", FULL_AT_STEP_16, *words],
        cwd=ROOT, capture_output=True, text=True, timeout=120, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "training goes on without a checkpoint of step 16" in done.stderr
    assert "No space left on device" in done.stderr
    assert metrics(tmp_path / "run")[-1]["step"] == 24
    kept = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert kept == ["step-00000008", "step-00000024"]
    found = newest(tmp_path / "run" / "checkpoints")
    assert found is not None
    assert found.step == 24
