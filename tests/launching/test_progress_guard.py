"""Three attempts that gain nothing are enough."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from modlib.launching.progress_guard import NoProgressError, idle_attempts, require_progress
from modlib.runtime.run_folder import RunFolder


def run_with(path: Path, steps: Sequence[int | None]) -> RunFolder:
    """A run whose attempts ended with these saved steps."""
    run = RunFolder(path / "run")
    run.create()
    for step in steps:
        attempt = run.begin_attempt()
        if step is not None:
            run.update(step=step)
        attempt.finish("died", step, 1)
    return run


@pytest.mark.parametrize(
    ("steps", "idle"),
    [
        ([], 0),
        ([10], 0),
        ([None], 1),
        ([0, 0], 2),
        ([10, 10], 1),
        ([10, 10, 10], 2),
        ([10, 10, 10, 10], 3),
        ([10, 10, 10, 20], 0),
        ([10, None, 10, None], 3),
        ([10, 20, 30], 0),
    ],
)
def test_attempts_in_a_row_without_a_saved_step(tmp_path: Path, steps: list[int | None], idle: int) -> None:
    assert idle_attempts(run_with(tmp_path, steps)) == idle


def test_the_third_is_the_last(tmp_path: Path) -> None:
    require_progress(run_with(tmp_path, [8, 8, 8]))
    run = run_with(tmp_path / "other", [8, 8, 8, 8])
    with pytest.raises(NoProgressError) as caught:
        require_progress(run)
    assert str(caught.value) == (
        f"3 attempts in a row saved no step beyond 8, so run run is not queued again; look for why in "
        f"{run.attempts_path}, correct it, and continue with: modlib resume {run.path}"
    )


def test_a_new_submission_counts_anew(tmp_path: Path) -> None:
    run = run_with(tmp_path, [8, 8, 8, 8])
    run.update(slurm={"attempts_before": run.num_attempts})
    require_progress(run)
    run.begin_attempt().finish("died", 8, 1)
    assert idle_attempts(run) == 1


def test_the_attempt_that_runs_does_not_count(tmp_path: Path) -> None:
    run = run_with(tmp_path, [8, 8])
    run.begin_attempt()
    assert idle_attempts(run) == 1


def test_an_extension_that_went_back_counts_from_its_step(tmp_path: Path) -> None:
    """A run of 40 steps that is extended from 16: attempts that save 24 and 30 gain steps."""
    run = run_with(tmp_path, [20, 40])
    run.update(extended=[{"at_step": 16, "attempts": 2}], slurm={"attempts_before": 2})
    for step, idle in ((24, 0), (30, 0), (30, 1), (30, 2)):
        run.begin_attempt().finish("died", step, 1)
        assert idle_attempts(run) == idle
    run.update(slurm={"attempts_before": 6})
    run.begin_attempt().finish("died", 31, 1)
    assert idle_attempts(run) == 0
