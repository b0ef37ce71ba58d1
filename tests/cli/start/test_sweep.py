"""launch.py --sweep: everything is checked, then each point trains in a process of its own; what "
"failed runs again alone."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest
from click.testing import Result
from typer.testing import CliRunner

from modlib.cli.main import app as modlib
from modlib.cli.start.launch import app as launch_app
from modlib.config import load
from modlib.launching.identity import with_planned_batch
from modlib.launching.sweep import read_sweep
from modlib.launching.sweep_results import results
from modlib.runtime.run_folder import RunFolder
from tests.cli.start.test_launch import imported_by
from tests.launching.sweeps import is_a_drawing
from tests.launching_command import command, launch, metrics, started, wait_for_step

TINY = "debug/tiny.gin"
SHORT = ["NUM_STEPS=4", "EVAL_EVERY=2", "CHECKPOINT_EVERY=2", "train.sample=None"]


def sweep(*flags: str) -> list[str]:
    return [word for flag in flags for word in ("--sweep", flag)]


def attempts(folder: Path) -> dict[str, int]:
    return {point.name: point.run.num_attempts for point in read_sweep(folder).points}


def states(folder: Path) -> dict[str, str]:
    return {result.point.name: result.state for result in results(read_sweep(folder), "train/loss", "min")}


@pytest.fixture(scope="module")
def one_failed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """Two learning rates, of which the first ends in NaN."""
    folder = tmp_path_factory.mktemp("sweep")
    done = launch(TINY, SHORT, *sweep("LR=[1e30,3e-3]"), "--name", "lr", cwd=folder)
    return folder / "runs" / "lr", done


@pytest.mark.slow
def test_a_point_that_fails_does_not_end_the_sweep(one_failed: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    folder, done = one_failed
    assert done.returncode == 1, done.stderr
    assert states(folder) == {"LR-1e30": "failed", "LR-3e-3": "finished"}
    assert [line["step"] for line in metrics(folder / "LR-3e-3") if "train/loss" in line] == [1, 2, 3, 4]
    record = RunFolder(folder / "LR-1e30").read()
    assert record["exit_code"] == 5
    assert record["sweep"] == "lr"
    points = read_sweep(folder).points
    assert [point.run.read()["config_hash"] for point in points] == [point.config_hash for point in points]


@pytest.mark.slow
def test_the_terminal_says_what_runs_what_failed_and_how_to_go_on(
    one_failed: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    _, done = one_failed
    lines = done.stderr.splitlines()
    own = [line for line in lines if line.startswith("[") and line[2:4] == "/2"]
    assert own[0] == lines[0]
    assert [line.split(" in ")[0] for line in own] == [
        "[1/2] LR-1e30", "[1/2] LR-1e30 failed: non-finite numbers, exit code 5",
        "[2/2] LR-3e-3", "[2/2] LR-3e-3 finished",
    ]  # fmt: skip
    assert ": best val/validation/loss 8." in own[-1]
    end = lines[lines.index("sweep lr: 1 of 2 points finished, 1 failed") :]
    assert end[1] == "  LR-1e30 failed: non-finite numbers, exit code 5 (logs: runs/lr/LR-1e30/attempts/0001/logs)"
    assert end[2] == "# run what is not finished: the same command"
    assert "--sweep 'LR=[1e30,3e-3]' --name lr" in end[3]
    assert end[4:] == ["# results", "modlib sweep runs/lr"]


@pytest.mark.slow
def test_its_results_and_its_plot(one_failed: tuple[Path, subprocess.CompletedProcess[str]], tmp_path: Path) -> None:
    folder, _ = one_failed
    shown = CliRunner().invoke(modlib, ["sweep", str(folder), "--plot", str(tmp_path / "lr.png")])
    assert shown.exit_code == 0, shown.output
    _, first, second = (line.split("\t") for line in shown.stdout.splitlines())
    loss = next(line for line in reversed(metrics(folder / "LR-3e-3")) if "val/validation/loss" in line)
    assert first[:2] == ["1e30", "failed: non-finite numbers, exit code 5"]
    assert second[:4] == ["3e-3", "finished", "4", f"{loss['val/validation/loss']:.4f}"]
    assert second[-1] == "<- best"
    assert "2 points: 1 failed, 1 finished" in shown.stderr
    assert is_a_drawing(tmp_path / "lr.png")


@pytest.mark.slow
def test_the_same_command_runs_the_failed_point_alone(
    one_failed: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    folder, _ = one_failed
    before = metrics(folder / "LR-3e-3")
    done = launch(TINY, SHORT, *sweep("LR=[1e30,3e-3]"), "--name", "lr", cwd=folder.parents[1])
    assert done.returncode == 1
    assert "sweep lr: 1 of 2 points are finished already" in done.stderr
    assert "[2/2] LR-1e30 failed: non-finite numbers" in done.stderr
    assert attempts(folder) == {"LR-1e30": 2, "LR-3e-3": 1}
    assert metrics(folder / "LR-3e-3") == before


def here(folder: Path, monkeypatch: pytest.MonkeyPatch, *words: str) -> Result:
    """launch.py in this process, in an empty folder."""
    monkeypatch.chdir(folder)
    return CliRunner().invoke(launch_app, [*command(TINY, SHORT)[2:], *words])


def test_dry_run_checks_all_points_and_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = here(tmp_path, monkeypatch, *sweep("GPT2.num_layers=[1,2]", "SEED=[0,1]"), "--dry_run", "--json")
    assert done.exit_code == 0, done.output
    content = json.loads(done.stdout)
    assert content["axes"] == ["GPT2.num_layers=[1, 2]", "SEED=[0, 1]"]
    points = content["points"]
    assert [point["name"] for point in points] == [
        "GPT2.num_layers-1_SEED-0", "GPT2.num_layers-1_SEED-1", "GPT2.num_layers-2_SEED-0", "GPT2.num_layers-2_SEED-1",
    ]  # fmt: skip
    assert {point["num_steps"] for point in points} == {4}
    assert {point["num_tokens"] for point in points} == {4 * 4 * 32}
    assert {point["state"] for point in points} == {"missing"}
    table = here(tmp_path, monkeypatch, *sweep("LR=[1e-3]", "SEED=[0,1]"), "--dry_run")
    assert [line.split("\t") for line in table.stdout.splitlines()] == [
        [f"LR-1e-3_SEED-{seed}", "1e-3", seed, config_hash, "4", "missing"]
        for seed, config_hash in (
            (seed, with_planned_batch(load([TINY], [*SHORT, "LR=1e-3", f"SEED={seed}"]), 1).hash[:8])
            for seed in ("0", "1")
        )
    ]
    assert list(tmp_path.iterdir()) == []


def test_what_does_not_fit_together_at_any_point_is_found_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = here(tmp_path, monkeypatch, *sweep("GPT2.num_heads=[2,3]", "SEED=[0,1]"))
    assert done.exit_code == 2
    assert done.stderr.splitlines()[:2] == [
        "config error; nothing was started",
        "  num_heads (3) must divide dim (32); nearest valid: 2 or 4 (at 2 points: GPT2.num_heads-3_SEED-0, "
        "GPT2.num_heads-3_SEED-1)",
    ]
    assert list(tmp_path.iterdir()) == []


def test_data_that_is_wrong_at_any_point_is_found_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_corpus: Path
) -> None:
    torn = tmp_path / "torn.packed"
    torn.write_bytes(small_corpus.read_bytes()[:-100])
    done = here(
        tmp_path, monkeypatch, *sweep(f"DATA=['{small_corpus}','{torn}']"), "--gin_param", f"VAL_DATA='{small_corpus}'"
    )
    assert done.exit_code == 3
    assert done.stderr.startswith("DataError: ")
    assert "(at DATA-torn.packed)" in done.stderr
    assert list(tmp_path.iterdir()) == [torn]


def test_a_wrong_axis_is_told_without_importing_torch() -> None:
    heavy, done = imported_by("--gin_file", TINY, "--sweep", "LR=1e-3")
    assert done.returncode == 2
    assert "--sweep #1: LR (1e-3) must be a list of values" in done.stderr
    assert heavy == set()


def test_sweep_samples_without_a_sweep_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = here(tmp_path, monkeypatch, "--sweep_samples", "3")
    assert done.exit_code == 2
    assert "--sweep_samples goes with --sweep" in done.stderr


@pytest.mark.slow
def test_a_point_whose_folder_is_in_use_fails_alone_and_runs_later(tmp_path: Path) -> None:
    flags = [*sweep("LR=[1e-3,3e-3]"), "--name", "s"]
    folder = tmp_path / "runs" / "s"
    held = RunFolder(folder / "LR-1e-3")
    held.create()
    with held.lock():
        done = launch(TINY, SHORT, *flags, cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    assert "must have one trainer at a time" in done.stderr
    assert "[1/2] LR-1e-3 failed: checkpoint error, exit code 4" in done.stderr
    assert states(folder)["LR-3e-3"] == "finished"
    again = launch(TINY, SHORT, *flags, cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert "sweep s: 2 of 2 points finished" in again.stderr
    assert attempts(folder) == {"LR-1e-3": 1, "LR-3e-3": 1}
    third = launch(TINY, SHORT, *flags, cwd=tmp_path)
    assert third.returncode == 0
    assert attempts(folder) == {"LR-1e-3": 1, "LR-3e-3": 1}


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_the_current_point_and_ends_the_sweep(tmp_path: Path, number: signal.Signals) -> None:
    long = ["NUM_STEPS=100000", "EVAL_EVERY=100000", "CHECKPOINT_EVERY=100000", "train.sample=None"]
    folder = tmp_path / "runs" / "s"
    with started(TINY, long, *sweep("LR=[1e-3,3e-3]"), "--name", "s", cwd=tmp_path) as process:
        wait_for_step(folder / "LR-1e-3", 3, process)
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 75, err
    assert states(folder) == {"LR-1e-3": "stopped", "LR-3e-3": "missing"}
    step = RunFolder(folder / "LR-1e-3").read()["step"]
    assert [path.name for path in (folder / "LR-1e-3" / "checkpoints").iterdir() if path.name.startswith("step-")] == [
        f"step-{step:08d}"
    ]
    assert f"[1/2] LR-1e-3 stopped at step {step}" in err
    assert "sweep s: 0 of 2 points finished, 2 to do" in err
    assert not (folder / "LR-3e-3").exists()


@pytest.mark.slow
def test_the_second_interrupt_ends_the_current_point_at_once(tmp_path: Path) -> None:
    long = ["NUM_STEPS=100000", "GRAD_ACCUM_STEPS=300", "train.sample=None"]  # steps of seconds, to be in one
    folder = tmp_path / "runs" / "s"
    run = RunFolder(folder / "LR-1e-3")
    with started(TINY, long, *sweep("LR=[1e-3,3e-3]"), "--name", "s", cwd=tmp_path) as process:
        wait_for_step(run.path, 1, process)
        process.send_signal(signal.SIGINT)
        log, deadline = run.current_attempt().log_path(0), time.monotonic() + 30
        while "Ctrl-C again stops now" not in log.read_text():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "interrupted twice: stopping now, without saving" in err
    assert not (folder / "LR-3e-3").exists()


@pytest.mark.slow
def test_a_point_saves_and_stops_when_its_sweep_is_killed(tmp_path: Path) -> None:
    long = ["NUM_STEPS=100000", "EVAL_EVERY=100000", "CHECKPOINT_EVERY=100000", "train.sample=None"]
    run = RunFolder(tmp_path / "runs" / "s" / "LR-1e-3")
    with started(TINY, long, *sweep("LR=[1e-3,3e-3]"), "--name", "s", cwd=tmp_path) as process:
        wait_for_step(run.path, 3, process)
        child = psutil.Process(run.read()["pid"])
        process.kill()
        child.wait(timeout=60)
    assert run.read()["status"] == "stopped"
    assert [path.name for path in run.checkpoints_path.iterdir() if path.name.startswith("step-")]


@pytest.mark.slow
def test_two_of_the_same_sweep_at_once_is_refused(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "runs" / "s")
    folder.path.mkdir(parents=True)
    with folder.lock():
        done = launch(TINY, SHORT, *sweep("LR=[1e-3,3e-3]"), "--name", "s", cwd=tmp_path)
    assert done.returncode == 4
    assert f"run folder ({folder.path}) must have one trainer at a time" in done.stderr
    assert not (folder.path / "sweep.json").exists()


@pytest.mark.slow
def test_random_points_across_two_processes_each(tmp_path: Path) -> None:
    """A point is whatever launch.py can run: here on two ranks."""
    flags = [*sweep("LR=loguniform(1e-4,1e-2)"), "--sweep_samples", "2", "--sweep_seed", "3", "--name", "s"]
    done = launch(TINY, [*SHORT, "Local.num_processes=2", "Local.threads_per_process=1"], *flags, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "runs" / "s"
    assert set(states(folder).values()) == {"finished"}
    for point in read_sweep(folder).points:
        assert point.run.read()["world_size"] == 2
