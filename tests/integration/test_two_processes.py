"""Two ranks over gloo: repeatable, killable, and interchangeable with one."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.launching_command import launch, metrics, numbers, started, wait_for_step

TINY = "debug/tiny.gin"
TWO = ["Local.num_processes=2", "MICRO_BATCH_SIZE=2", "GPT2.dropout=0.0"]
ONE = ["Local.num_processes=1", "MICRO_BATCH_SIZE=2", "GPT2.dropout=0.0"]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed-two")
    done = launch(TINY, TWO, "--runs_dir", str(folder), "--name", "run")
    assert done.returncode == 0, done.stderr
    return folder / "run"


@pytest.mark.slow
def test_kill_9_of_the_launcher_and_restart(undisturbed: Path, tmp_path: Path) -> None:
    arguments = (TINY, TWO, "--runs_dir", str(tmp_path), "--name", "run")
    with started(*arguments) as process:
        wait_for_step(tmp_path / "run", 13, process)
        process.kill()
    again = launch(*arguments)
    assert again.returncode == 0, again.stderr
    assert numbers(tmp_path / "run") == numbers(undisturbed)


@pytest.mark.slow
def test_stop_at_two_processes_and_continue_with_one(undisturbed: Path, tmp_path: Path) -> None:
    arguments = ("--runs_dir", str(tmp_path), "--name", "run")
    with started(TINY, TWO, *arguments) as process:
        wait_for_step(tmp_path / "run", 20, process)
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=90)
    assert process.returncode == 75, err
    again = launch(TINY, ONE, *arguments)
    assert again.returncode == 0, again.stderr
    assert "continuing with the run's global batch of 4: 2 sequences x 2 accumulation x 1 processes" in again.stderr
    ours, reference = numbers(tmp_path / "run"), numbers(undisturbed)
    assert [line[:3] for line in ours] == [line[:3] for line in reference]
    for (step, _, name, value), (_, _, _, expected) in zip(ours, reference, strict=True):
        if name != "train/grad_norm":
            assert value == pytest.approx(expected, abs=1e-5), f"{name} at step {step}"
    assert metrics(tmp_path / "run")[-1]["attempt"] == 2
