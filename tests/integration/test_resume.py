"""Killed runs continue as if nothing had happened: the same metrics, bit for bit."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from pathlib import Path

import psutil
import pytest

from tests.launching_command import launch, metrics, numbers, started, wait_for_step

TINY = "debug/tiny.gin"


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed") / "r[" / "y]"  # brackets of a path are no style
    done = launch(TINY, [], "--runs_dir", str(folder), "--name", "run")
    assert done.returncode == 0, done.stderr
    return folder / "run"


def test_metrics_are_complete_and_flat(undisturbed: Path) -> None:
    lines = metrics(undisturbed)
    training = [line for line in lines if "train/loss" in line]
    assert [line["step"] for line in training] == list(range(1, 41))
    assert {"step", "tokens", "time", "attempt", "train/lr", "train/grad_norm", "memory/peak_gib"} <= set(training[-1])
    assert training[-1]["tokens"] == 40 * 4 * 32
    assert [line["step"] for line in lines if "val/validation/loss" in line] == [10, 20, 30, 40]
    assert all(isinstance(value, int | float) for line in lines for value in line.values())


@pytest.mark.slow
def test_kill_9_at_a_random_step_and_restart(undisturbed: Path, tmp_path: Path) -> None:
    step = random.SystemRandom().randint(1, 36)
    arguments = (TINY, [], "--runs_dir", str(tmp_path), "--name", "run")
    with started(*arguments) as process:
        wait_for_step(tmp_path / "run", step, process)
        process.kill()
        process.wait()
    assert metrics(tmp_path / "run")[-1]["step"] < 40, "killed too late to show anything"
    again = launch(*arguments)
    assert again.returncode == 0, again.stderr
    assert numbers(tmp_path / "run") == numbers(undisturbed), f"killed after step {step}"
    attempts = {line["attempt"] for line in metrics(tmp_path / "run")}
    assert 2 in attempts


@pytest.mark.slow
@pytest.mark.parametrize(
    "number",
    [
        signal.SIGTERM,
        pytest.param(signal.SIGINT, marks=pytest.mark.slow),
        pytest.param(signal.SIGUSR2, marks=pytest.mark.slow),
        pytest.param(signal.SIGHUP, marks=pytest.mark.slow),
    ],
)
def test_a_signal_saves_at_once_and_the_same_command_continues(
    undisturbed: Path, tmp_path: Path, number: signal.Signals
) -> None:
    arguments = (TINY, [], "--runs_dir", str(tmp_path), "--name", "run")
    with started(*arguments) as process:
        wait_for_step(tmp_path / "run", 3, process)
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 75, err
    last = metrics(tmp_path / "run")[-1]["step"]
    assert (tmp_path / "run" / "checkpoints" / f"step-{last:08d}").is_dir()
    again = launch(*arguments)
    assert again.returncode == 0, again.stderr
    assert numbers(tmp_path / "run") == numbers(undisturbed)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_a_signal_to_the_whole_job_spares_the_compilers_helpers(tmp_path: Path) -> None:
    params = ["train.compile=True", "train.sample=None", "NUM_STEPS=40"]
    with started(TINY, params, "--runs_dir", str(tmp_path), "--name", "run") as process:
        deadline = time.monotonic() + 90
        while not (helpers := compile_workers(process.pid)):
            assert time.monotonic() < deadline, "no compile worker was seen"
            assert process.poll() is None
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGUSR2)
        time.sleep(0.2)
        assert all(helper.is_running() and helper.status() != psutil.STATUS_ZOMBIE for helper in helpers)
        _, err = process.communicate(timeout=120)
    assert process.returncode == 75, err
    # on a busy machine compiling the first step outlasts the grace: then there was nothing to save
    assert list((tmp_path / "run" / "checkpoints").glob("step-*")) or not metrics(tmp_path / "run"), err
    _, alive = psutil.wait_procs(helpers, timeout=20)
    assert not alive, "a helper outlived the run"


def compile_workers(pid: int) -> list[psutil.Process]:
    try:
        children = psutil.Process(pid).children(recursive=True)
        return [child for child in children if "compile_worker" in " ".join(child.cmdline())]
    except psutil.Error:
        return []


def test_a_finished_run_is_left_alone(undisturbed: Path) -> None:
    before = (undisturbed / "metrics.jsonl").read_bytes()
    again = launch(TINY, [], "--runs_dir", str(undisturbed.parent), "--name", "run")
    assert again.returncode == 0
    assert f"run run is finished: 40 steps are done and saved in {undisturbed}\n" in again.stderr
    assert (undisturbed / "metrics.jsonl").read_bytes() == before


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_three_segments_across_an_epoch_boundary(tmp_path: Path, workers: int, small_corpus: Path) -> None:
    params = [
        f"DATA='{small_corpus}'",
        f"VAL_DATA='{small_corpus}'",
        "NUM_STEPS=60",
        f"DataLoader.num_workers={workers}",
    ]
    whole = launch(TINY, params, "--runs_dir", str(tmp_path), "--name", "whole")
    assert whole.returncode == 0, whole.stderr
    arguments = (TINY, params, "--runs_dir", str(tmp_path), "--name", "parts")
    for step in (10, 35):
        with started(*arguments) as process:
            wait_for_step(tmp_path / "parts", step, process)
            process.kill()
    last = launch(*arguments)
    assert last.returncode == 0, last.stderr
    assert numbers(tmp_path / "parts") == numbers(tmp_path / "whole")
    assert max(line["attempt"] for line in metrics(tmp_path / "parts")) == 3
