"""A run whose folder is taken away while it trains: it ends, says so, and makes nothing anew at the old place."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.launching_command import ROOT, command, wait_for_step

# launch.py, which looks after its lease more often
LAUNCH = """
from modlib.runtime import run_lock
run_lock.LEASE_RENEWED_S = 0.2
from modlib.cli.start.launch import main
main()
"""
PARAMS = ["NUM_STEPS=4000", "EVAL_EVERY=4000", "CHECKPOINT_EVERY=2", "train.subscribers=[@RichProgress, @JSONL]"]
TWO = ("Local.num_processes=2", "MICRO_BATCH_SIZE=2")


@contextmanager
def training(runs_dir: Path, *params: str) -> Iterator[subprocess.Popen[str]]:
    """A run that has saved its second step."""
    words = command("debug/tiny.gin", [*PARAMS, *params], "--runs_dir", str(runs_dir), "--name", "run")
    process = subprocess.Popen(
        [sys.executable, "-c", LAUNCH, *words[2:]],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    try:
        wait_for_step(runs_dir / "run", 4, process)
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.mark.slow
@pytest.mark.parametrize("params", [(), pytest.param(TWO, marks=pytest.mark.slow)])
def test_a_run_folder_that_is_moved_ends_the_run(tmp_path: Path, params: tuple[str, ...]) -> None:
    with training(tmp_path, *params) as process:
        (tmp_path / "run").rename(tmp_path / "moved")
        _, err = process.communicate(timeout=60)
    assert process.returncode == 4, err
    assert f"run folder ({tmp_path / 'run'}) must stay in its place while a run trains, but was moved" in err
    assert "Traceback" not in err
    assert [path.name for path in tmp_path.iterdir()] == ["moved"]
    assert list((tmp_path / "moved" / "checkpoints").glob("step-*"))


@pytest.mark.slow
def test_a_run_folder_that_is_removed_ends_the_run(tmp_path: Path) -> None:
    with training(tmp_path) as process:
        shutil.rmtree(tmp_path / "run", ignore_errors=True)  # while it writes there
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 4, err
    # a heartbeat may come while the folder is there and the lease is not
    assert re.search("must stay (in its place )?while a run trains, but was ", err), err
    assert "Traceback" not in err
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_lease_that_is_removed_ends_the_run_and_is_on_record(tmp_path: Path) -> None:
    with training(tmp_path) as process:
        (tmp_path / "run" / "lease.json").unlink()
        _, err = process.communicate(timeout=60)
    assert process.returncode == 4, err
    assert "must stay while a run trains, but was removed" in err
    state = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (state["status"], state["exit_code"]) == ("failed", 4)
    assert json.loads((tmp_path / "run" / "attempts" / "0001" / "exit.json").read_text())["reason"] == "failed"
