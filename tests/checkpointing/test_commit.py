"""The commit protocol: the order of its operations, a crash before each of them, and what a failing disk leaves."""

from __future__ import annotations

import errno
import json
import os
import re
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from modlib.checkpointing.commit import clean, preflight, recover
from modlib.checkpointing.loading import newest, verify
from modlib.checkpointing.names import aside_name, step_folders, step_of
from modlib.checkpointing.writing import save
from modlib.runtime import durable, faults
from modlib.runtime.errors import CheckpointError, NonFiniteError
from tests import forked
from tests.checkpointing.crashes import SCENARIOS
from tests.checkpointing.training import Run

ROOT = Path(__file__).parents[2]


@contextmanager
def recorded() -> Iterator[list[list[str]]]:
    operations: list[list[str]] = []
    with faults.installed("fs.operation", lambda point, detail: operations.append(detail.split())):
        yield operations


def test_every_byte_and_name_is_on_the_disk_before_the_commit_and_the_commit_after_it(tmp_path: Path) -> None:
    run = Run(seed=1)
    run.train(1)
    with recorded() as operations:
        save(tmp_path, step=7, **run.parts)
    commit = next(i for i, operation in enumerate(operations) if operation[0] == "rename")
    aside = operations[commit][1]
    assert re.fullmatch(r"\.tmp-step-00000007\.[0-9a-f]{8}", Path(aside).name)
    assert operations[commit][2] == str(tmp_path / "step-00000007")
    files = [operation[1] for operation in operations if operation[0] == "create"]
    assert Path(files[-1]).name == "manifest.json"
    for path in files:
        last_write = max(i for i, operation in enumerate(operations) if operation == ["write", path])
        assert last_write < operations.index(["fsync", path]) < commit
    others_done = max(operations.index(["fsync", path]) for path in files[:-1])
    assert others_done < operations.index(["create", files[-1]])
    last_directory_sync = max(i for i, operation in enumerate(operations) if operation == ["fsync", aside])
    assert operations.index(["fsync", files[-1]]) < last_directory_sync < commit
    assert operations[commit + 1 :] == [["fsync", str(tmp_path)]]


@pytest.mark.slow
@pytest.mark.parametrize(
    "scenario",
    [name if name == "replace" else pytest.param(name, marks=pytest.mark.slow) for name in SCENARIOS],
)
def test_a_kill_before_any_file_operation_leaves_the_old_or_the_new_checkpoint(tmp_path: Path, scenario: str) -> None:
    done = forked.run(
        [sys.executable, "-m", "tests.checkpointing.crashes", str(tmp_path), scenario],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    restored = [line["restored"] for line in lines]
    assert len(lines) > 10
    assert "neither" not in restored
    assert restored == sorted(restored, reverse=True), "once new, always new"  # "old" > "new"
    assert restored[0] == "old"
    assert restored[-1] == "new"
    for line in lines:
        assert all(re.fullmatch(r"step-\d{8}", name) for name in line["left"]), line


def test_an_existing_step_is_replaced_whole(tmp_path: Path) -> None:
    first, second = Run(seed=1), Run(seed=2)
    save(tmp_path, step=1, **first.parts)
    (tmp_path / "step-00000001" / "stray").write_text("of the first save")
    save(tmp_path, step=1, **second.parts)
    assert os.listdir(tmp_path) == ["step-00000001"]
    assert not (tmp_path / "step-00000001" / "stray").exists()
    assert verify(tmp_path / "step-00000001") == []


def test_something_else_in_the_place_of_a_checkpoint_is_refused(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / "step-00000001").symlink_to(elsewhere)
    with pytest.raises(CheckpointError, match="must be a checkpoint or not exist; a file or link of that name is in"):
        save(tmp_path, step=1, **Run(seed=1).parts)
    assert sorted(os.listdir(tmp_path)) == ["elsewhere", "step-00000001"]
    assert os.listdir(elsewhere) == []


def test_a_step_must_be_a_number(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"step \(-1\) must be an int of at least 0"):
        save(tmp_path, step=-1, **Run(seed=1).parts)


NAMES = {
    "step-00000100": 100,
    "step-123456789": 123456789,
    "step-0000100": None,
    "step-000000100": None,
    "step-00000100.bak": None,
    "old-step-00000100": None,
    "step-00000100\n": None,
    "step-٠٠٠٠٠١٠٠": None,
    "step--0000001": None,
    ".tmp-step-00000100.0123abcd": None,
}


@pytest.mark.parametrize(("name", "step"), NAMES.items())
def test_only_exact_names_are_checkpoints(name: str, step: int | None) -> None:
    assert step_of(name) == step


def test_links_and_files_are_not_checkpoints(tmp_path: Path) -> None:
    save(tmp_path / "real", step=5, **Run(seed=1).parts)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "step-00000005").symlink_to(tmp_path / "real" / "step-00000005")
    (tmp_path / "run" / "step-00000006").write_text("")
    (tmp_path / "run" / "step-00000007").symlink_to("/nonexistent")
    assert step_folders(tmp_path / "run") == []
    assert newest(tmp_path / "run") is None
    assert newest(tmp_path / "nowhere") is None


def test_leftovers_are_cleaned_without_following_links(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("x")
    folder = tmp_path / "checkpoints"
    save(folder, step=5, **Run(seed=1).parts)
    for kind in ("tmp", "trash"):
        leftover = folder / aside_name(kind, 3)
        (leftover / "deep").mkdir(parents=True)
        (leftover / "data").write_text("x")
        (leftover / "link").symlink_to(outside)
        (leftover / "deep" / "file").symlink_to(outside / "precious")
    (folder / aside_name("tmp", 4)).symlink_to(outside)
    (folder / "notes").mkdir()
    clean(folder)
    names = sorted(os.listdir(folder))
    assert names[-2:] == ["notes", "step-00000005"]
    assert len(names) == 3  # the link with a leftover's name is not ours to remove
    assert (outside / "precious").read_text() == "x"


def test_a_checkpoint_set_aside_comes_back_only_where_none_took_its_place(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save(tmp_path, step=5, **Run(seed=1).parts)
    os.rename(tmp_path / "step-00000005", tmp_path / aside_name("replaced", 5))
    found = newest(tmp_path)
    assert found is not None
    assert found.step == 5
    assert "step-00000005 was being replaced when the process ended; the old one is back" in caplog.text
    os.mkdir(tmp_path / aside_name("replaced", 5))
    recover(tmp_path)
    assert verify(tmp_path / "step-00000005") == []


def test_a_full_disk_is_named_before_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from modlib.checkpointing import commit

    save(tmp_path, step=1, **Run(seed=1).parts)
    monkeypatch.setattr(commit, "free_bytes", lambda folder: 1000)
    text = r"free space \(1000 bytes, 0.00 GiB\) in .* must be at least what checkpoints need \(\d+ bytes, 0.00 GiB\)"
    with pytest.raises(CheckpointError, match=text):
        save(tmp_path, step=2, **Run(seed=1).parts)
    with pytest.raises(CheckpointError, match=r"need \(5000000 bytes, 0.00 GiB\); free some, or keep fewer"):
        preflight(tmp_path, 5_000_000)
    assert os.listdir(tmp_path) == ["step-00000001"]


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (errno.ENOSPC, r"\(needs \d+ bytes, \d+ are free\): No space left on device; the disk is full"),
        (errno.EDQUOT, "Disk quota exceeded; the quota is used up"),
        (errno.EROFS, "Read-only file system; the file system is read-only; use another runs_dir"),
        (errno.EIO, "Input/output error; see the system's message; earlier checkpoints are untouched"),
    ],
)
@pytest.mark.parametrize("point", ["ckpt.shard.write", "ckpt.before_manifest", "ckpt.before_commit"])
def test_an_error_of_the_disk_in_mid_save_keeps_the_older_checkpoint(
    tmp_path: Path, point: str, number: int, text: str
) -> None:
    save(tmp_path, step=1, **Run(seed=1).parts)

    def fail(point: str, detail: str) -> None:
        raise OSError(number, os.strerror(number))

    with faults.installed(point, fail), pytest.raises(CheckpointError, match=text):
        save(tmp_path, step=2, **Run(seed=1).parts)
    assert os.listdir(tmp_path) == ["step-00000001"]
    assert verify(tmp_path / "step-00000001") == []


def test_a_file_size_limit_in_mid_save_keeps_the_older_checkpoint(tmp_path: Path) -> None:
    run = Run(seed=1, dim=64)
    save(tmp_path, step=1, **run.parts)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(
            CheckpointError, match=r"File too large; a file may not grow that large; raise the file size"
        ):
            save(tmp_path, step=2, **run.parts)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert os.listdir(tmp_path) == ["step-00000001"]
    save(tmp_path, step=2, **run.parts)
    assert verify(tmp_path / "step-00000002") == []


def test_a_real_full_device_in_mid_save_keeps_the_older_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, step=1, **Run(seed=1).parts)
    monkeypatch.setattr(durable, "create_file", lambda path, direct=False: os.open("/dev/full", os.O_WRONLY))
    with pytest.raises(CheckpointError, match="No space left on device; the disk is full"):
        save(tmp_path, step=2, **Run(seed=1).parts)
    assert os.listdir(tmp_path) == ["step-00000001"]


def test_preflight_finds_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    preflight(tmp_path / "new" / "checkpoints", 1000)
    assert os.listdir(tmp_path / "new" / "checkpoints") == []
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="file/checkpoints cannot be written: Not a directory; see the system's"):
        preflight(tmp_path / "file" / "checkpoints", 1000)


def test_nan_and_inf_are_never_committed(tmp_path: Path) -> None:
    run = Run(seed=1)
    run.train(1)
    save(tmp_path, step=1, **run.parts)
    state = run.optimizer.state[run.model.embedding.weight]["exp_avg"]
    for tensor, value, name in [
        (run.model.norm.bias.detach(), float("nan"), "norm.bias"),
        (run.model.embedding.weight.detach(), float("-inf"), "embedding.weight"),
        (state, float("inf"), "optimizer.embedding.weight.exp_avg"),
    ]:
        kept = tensor.clone()
        tensor.view(-1)[5] = value
        with pytest.raises(NonFiniteError, match=rf"{name} must be finite to be saved; it holds NaN or Inf") as caught:
            save(tmp_path, step=2, **run.parts)
        assert caught.value.exit_code == 5
        tensor.copy_(kept)
    assert os.listdir(tmp_path) == ["step-00000001"]
    save(tmp_path, step=2, **run.parts)


def test_an_interrupt_in_mid_save_is_raised_and_leaves_nothing(tmp_path: Path) -> None:
    def interrupt(point: str, detail: str) -> None:
        raise KeyboardInterrupt

    with faults.installed("ckpt.before_manifest", interrupt), pytest.raises(KeyboardInterrupt):
        save(tmp_path, step=2, **Run(seed=1).parts)
    assert os.listdir(tmp_path) == []
