"""When checkpoints are saved and which are kept; what is kept is read from the disk."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from modlib.checkpointing import CheckpointSaving, save
from modlib.components import CATALOGUE
from modlib.runtime.errors import ConfigError
from tests.checkpointing.training import Run


def steps(folder: Path) -> list[int]:
    return sorted(int(name.removeprefix("step-")) for name in os.listdir(folder))


def test_due_on_multiples_only() -> None:
    assert [step for step in range(8) if CheckpointSaving(every=3).due(step)] == [3, 6]
    assert not any(CheckpointSaving().due(step) for step in range(8))


def test_the_newest_and_every_nth_are_kept_across_restarts(tmp_path: Path) -> None:
    run = Run(seed=1)
    for step in range(1, 10):
        CheckpointSaving(every=1, keep_last=2, keep_every=4).save(tmp_path, step=step, **run.parts)
    assert steps(tmp_path) == [4, 8, 9]
    CheckpointSaving(every=1, keep_last=1).save(tmp_path, step=10, **run.parts)
    assert steps(tmp_path) == [10]


def test_all_are_kept_on_request(tmp_path: Path) -> None:
    run = Run(seed=1)
    for step in range(1, 5):
        CheckpointSaving(keep_last=-1).save(tmp_path, step=step, **run.parts)
    assert steps(tmp_path) == [1, 2, 3, 4]


def test_damaged_ones_neither_count_nor_are_removed(tmp_path: Path) -> None:
    run = Run(seed=1)
    for step in range(1, 5):
        save(tmp_path, step=step, **run.parts)
    for step in (3, 4):
        os.truncate(tmp_path / f"step-0000000{step}" / "data-00000-00000.bin", 7)
    removed = CheckpointSaving(keep_last=1).prune(tmp_path)
    assert [path.name for path in removed] == ["step-00000001"]
    assert steps(tmp_path) == [2, 3, 4]


def test_pruning_removes_leftovers(tmp_path: Path) -> None:
    save(tmp_path, step=1, **Run(seed=1).parts)
    (tmp_path / ".tmp-step-00000002.0123abcd").mkdir()
    assert CheckpointSaving().prune(tmp_path) == []
    assert steps(tmp_path) == [1]


def test_wrong_settings_are_all_named() -> None:
    with pytest.raises(ConfigError) as caught:
        CheckpointSaving(every=0, keep_last=0, keep_every=-2)
    assert caught.value.problems == [
        "every (0) must be at least 1; set it to 1 or more, or to None",
        "keep_every (-2) must be at least 1; set it to 1 or more, or to None",
        "keep_last (0) must be at least 1 (or -1 to keep all); set it to 2 or more to be safe",
    ]


def test_it_is_a_component_that_imports_no_torch() -> None:
    assert CATALOGUE["CheckpointSaving"].type == "checkpoint_saving"
    code = "import sys, modlib.checkpointing, modlib.checkpointing.saving; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
