"""When checkpoints are saved and which are kept; what is kept is read from the disk."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from modlib.checkpointing.loading import restore_newest
from modlib.checkpointing.saving import CheckpointSaving, FSDPCheckpointSaving
from modlib.checkpointing.strategies import SaveEveryKSteps, SaveKMostRecent
from modlib.checkpointing.writing import save
from modlib.components import CATALOGUE
from modlib.runtime.errors import ConfigError
from tests.checkpointing.training import Run


def steps(folder: Path) -> list[int]:
    return sorted(int(name.removeprefix("step-")) for name in os.listdir(folder))


def recent(k: int = 2, every: int = 1) -> Callable[..., Any]:
    return partial(SaveKMostRecent, k, every=every)


def saving(*strategies: Callable[..., Any]) -> CheckpointSaving:
    return CheckpointSaving(strategies)


def test_due_on_multiples_only_and_never_at_the_start() -> None:
    assert [step for step in range(8) if saving(recent(every=3)).due(step)] == [3, 6]
    assert [step for step in range(9) if saving(partial(SaveEveryKSteps, 4)).due(step)] == [4, 8]
    assert not any(saving(recent(k=0)).due(step) for step in range(8))


def test_strategies_combine(tmp_path: Path) -> None:
    """Every fourth for good, and the newest two of the rest: read from the disk, so also across restarts."""
    run = Run(seed=1)
    for step in range(1, 10):
        both = saving(partial(SaveEveryKSteps, 4), recent(2))
        assert both.due(step)
        both.save(tmp_path, step=step, **run.parts)
    assert steps(tmp_path) == [4, 7, 8, 9]
    saving(recent(1)).save(tmp_path, step=10, **run.parts)
    assert steps(tmp_path) == [10]


def test_the_order_of_strategies_does_not_matter(tmp_path: Path) -> None:
    run = Run(seed=1)
    for step in range(1, 10):
        saving(recent(2), partial(SaveEveryKSteps, 4)).save(tmp_path, step=step, **run.parts)
    assert steps(tmp_path) == [4, 7, 8, 9]


def test_steps_that_a_resumed_run_passed_over_neither_count_nor_cost_the_newest(tmp_path: Path) -> None:
    """Step 8 is damaged in a way that only its hash shows; the run went on from 2 and saves 3."""
    run = Run(seed=1)
    for step in (2, 8):
        save(tmp_path, step=step, **run.parts)
    data = tmp_path / "step-00000008" / "data-00000-00000.bin"
    content = bytearray(data.read_bytes())
    content[100] ^= 1
    data.write_bytes(content)
    assert restore_newest(tmp_path, **run.parts).step == 2  # type: ignore[union-attr]
    saving(recent(1)).save(tmp_path, step=3, **run.parts)
    assert steps(tmp_path) == [3, 8]
    assert restore_newest(tmp_path, **run.parts).step == 3  # type: ignore[union-attr]


def test_a_folder_that_cannot_be_tidied_costs_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    run = Run(seed=1)
    save(tmp_path, step=1, **run.parts)
    monkeypatch.setattr("modlib.checkpointing.commit.delete", refuse)
    assert saving(recent(1)).save(tmp_path, step=2, **run.parts).path == tmp_path / "step-00000002"
    assert "that are no longer kept stay for now: [Errno 13] Permission denied" in caplog.text


@pytest.mark.parametrize(("k", "left"), [(-1, [1, 2, 3, 4, 5]), (0, [5]), (1, [5]), (3, [3, 4, 5])])
def test_the_newest_k_are_kept(tmp_path: Path, k: int, left: list[int]) -> None:
    run = Run(seed=1)
    for step in range(1, 6):
        saving(recent(k)).save(tmp_path, step=step, **run.parts)
    assert steps(tmp_path) == left


def test_the_newest_stays_though_no_strategy_keeps_it(tmp_path: Path) -> None:
    """The save a run ends with, at a step that is no multiple."""
    run = Run(seed=1)
    for step in (4, 6):
        saving(partial(SaveEveryKSteps, 4)).save(tmp_path, step=step, **run.parts)
    assert steps(tmp_path) == [4, 6]
    saving(partial(SaveEveryKSteps, 4)).save(tmp_path, step=7, **run.parts)
    assert steps(tmp_path) == [4, 7]


def test_damaged_ones_neither_count_nor_are_removed(tmp_path: Path) -> None:
    run = Run(seed=1)
    for step in range(1, 5):
        save(tmp_path, step=step, **run.parts)
    for step in (3, 4):
        os.truncate(tmp_path / f"step-0000000{step}" / "data-00000-00000.bin", 7)
    removed = saving(recent(1)).prune(tmp_path, 4)
    assert [path.name for path in removed] == ["step-00000001"]
    assert steps(tmp_path) == [2, 3, 4]


def test_pruning_removes_leftovers(tmp_path: Path) -> None:
    save(tmp_path, step=1, **Run(seed=1).parts)
    (tmp_path / ".tmp-step-00000002.0123abcd").mkdir()
    assert saving(recent()).prune(tmp_path, 1) == []
    assert steps(tmp_path) == [1]


def test_wrong_settings_are_all_named() -> None:
    with pytest.raises(ConfigError) as caught:
        SaveKMostRecent(-2, every=0)
    assert caught.value.problems == [
        "k (-2) must be at least 0, or -1 to keep all; set it to 2 or more to be safe",
        "every (0) must be at least 1; set k = 0 to never save on a step",
    ]
    with pytest.raises(
        ConfigError, match=r"k \(0\) must be at least 1; to never save on a step leave this strategy out"
    ):
        SaveEveryKSteps(0)
    with pytest.raises(ConfigError, match=r"strategies \(\[\]\) must name at least one; set e.g."):
        CheckpointSaving([])
    with pytest.raises(ConfigError, match=r"threads_per_processor \(0\) must be at least 1; set it to 4"):
        FSDPCheckpointSaving(0)


def test_more_threads_write_more_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processors: 2 threads with 4 files each, or 8 threads with files of the smallest size."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    monkeypatch.setattr("modlib.checkpointing.raw_writer.MIN_FILE_BYTES", 1 << 20)
    model = nn.Linear(1024, 4096, bias=False)  # 16 MiB
    num_files = {}
    for threads in (1, 4):
        saved = FSDPCheckpointSaving(threads).save(tmp_path, step=threads, model=model)
        num_files[threads] = len(list(saved.path.glob("data-*")))
    assert num_files == {1: 8, 4: 16}


def test_it_is_a_component_that_imports_no_torch() -> None:
    assert CATALOGUE["CheckpointSaving"].type == "checkpoint_saving"
    code = "import sys, modlib.checkpointing.saving; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
