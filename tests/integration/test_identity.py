"""A run keeps its word across versions and numbers of processes: real processes, from the command to the metrics."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.launching_command import launch, metrics, numbers

OLD = Path(__file__).parent / "first_hash_run"
"""A run with a checkpoint at step 8 of 12, killed at step 10, as modlib of commit bf2e823 left it."""


@pytest.fixture
def old(tmp_path: Path) -> tuple[Path, Path]:
    """The folder of the old run, under its name, and the gin file that it was started with."""
    run = tmp_path / "old-5f43a6de"
    shutil.copytree(OLD, run)
    return run, Path(shutil.copy(OLD / "config.gin", tmp_path / "old.gin"))


@pytest.mark.slow
def test_a_run_folder_of_the_first_hash_continues_to_its_end(old: tuple[Path, Path], tmp_path: Path) -> None:
    run, file = old
    before = numbers(run)
    done = launch(str(file), (), "--runs_dir", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "resumed from step 8" in done.stderr
    assert "metrics.jsonl has no line" not in done.stderr
    assert [line["step"] for line in metrics(run)] == list(range(1, 13))
    assert numbers(run)[: 8 * 3] == before[: 8 * 3]
    for name, value in (("train/loss", 3), ("train/grad_norm", 3)):  # steps 9 and 10 of two machines, at most
        ours = [one for one in numbers(run) if one[0] in (9, 10) and one[2] == name]
        theirs = [one for one in before if one[0] in (9, 10) and one[2] == name]
        assert [one[3] for one in ours] == pytest.approx([one[3] for one in theirs], rel=10**-value)
    assert json.loads((run / "run.json").read_text())["log_every"] == [[8, 1]]


@pytest.mark.slow
def test_two_processes_after_one_are_another_run_and_under_its_name_are_refused(
    old: tuple[Path, Path], tmp_path: Path
) -> None:
    run, file = old
    two, flags = ["Local.num_processes=2"], ("--runs_dir", str(tmp_path))
    done = launch(str(file), two, *flags, "--name", run.name)
    assert done.returncode == 2
    assert "global_batch_size (2) of run 'old-5f43a6de' must be a multiple of micro_batch_size (2) x 2" in done.stderr
    assert len(list((run / "attempts").iterdir())) == 1
    done = launch(str(file), two, *flags)
    assert done.returncode == 0, done.stderr
    (other,) = (path for path in tmp_path.glob("old-*") if path != run)
    assert metrics(other)[-1]["tokens"] == 12 * 4 * 8
    assert len(metrics(run)) == 10
    again = launch(str(file), (), *flags, "--name", other.name)
    assert again.returncode == 0, again.stderr
    assert "is finished" in again.stderr
    assert "change no number" not in again.stderr


@pytest.mark.slow
def test_a_gap_in_the_metrics_is_told_and_training_continues(old: tuple[Path, Path], tmp_path: Path) -> None:
    run, file = old
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join(lines[:3] + lines[5:]))
    done = launch(str(file), (), "--runs_dir", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "metrics.jsonl has no line for steps 4 to 5: the run continues" in done.stderr
    assert json.loads((run / "run.json").read_text())["metrics_missing"] == [[4, 5]]
    assert [line["step"] for line in metrics(run)] == [1, 2, 3, *range(6, 13)]
