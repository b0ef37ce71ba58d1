"""File operations that survive a crash, and the fault points in them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from modlib.runtime import durable, faults


def test_atomic_write_replaces_the_whole_text(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    durable.atomic_write_text(path, "first, and longer")
    durable.atomic_write_text(path, "zweite ü")
    assert path.read_text(encoding="utf-8") == "zweite ü"
    assert os.listdir(tmp_path) == ["run.json"]


@pytest.mark.parametrize("failing", ["create", "write", "fsync", "rename"])
def test_a_failed_atomic_write_keeps_the_old_text_and_leaves_nothing(tmp_path: Path, failing: str) -> None:
    path = tmp_path / "run.json"
    durable.atomic_write_text(path, "old")

    def fail(point: str, detail: str) -> None:
        if detail.startswith(failing):
            raise OSError("disk")

    with faults.installed("fs.operation", fail), pytest.raises(OSError, match="disk"):
        durable.atomic_write_text(path, "new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["run.json"]


def test_exchange_swaps_two_directories(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).write_text("")
    if not durable.exchange(tmp_path / "a", tmp_path / "b"):
        pytest.skip("this file system cannot swap names")
    assert os.listdir(tmp_path / "a") == ["b"]
    with pytest.raises(FileNotFoundError):
        durable.exchange(tmp_path / "a", tmp_path / "missing")


def test_remove_tree_does_not_follow_links(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "file").write_text("x")
    (tmp_path / "tree" / "deep").mkdir(parents=True)
    (tmp_path / "tree" / "link").symlink_to(tmp_path / "kept")
    (tmp_path / "tree" / "deep" / "dangling").symlink_to("/nonexistent")
    durable.remove_tree(tmp_path / "tree")
    assert os.listdir(tmp_path) == ["kept"]
    assert os.listdir(tmp_path / "kept") == ["file"]


def test_create_file_refuses_what_exists(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "target")
    for name in ("link", "file"):
        (tmp_path / "file").touch()
        with pytest.raises(FileExistsError):
            durable.create_file(tmp_path / name)


@pytest.mark.parametrize("size", [0, 1, 4096, 12345])
def test_direct_writes_of_any_size_arrive(tmp_path: Path, size: int) -> None:
    data = os.urandom(size)
    descriptor = durable.create_file(tmp_path / "file", direct=True)
    durable.write_all(descriptor, memoryview(data), 0, tmp_path / "file")
    os.close(descriptor)
    assert (tmp_path / "file").read_bytes() == data


def test_fault_points_are_known_and_hold_one_action_each() -> None:
    seen: list[tuple[str, str]] = []
    with faults.installed("ckpt.delete", lambda *call: seen.append(call)):
        faults.point("ckpt.delete", "x")
        with (
            pytest.raises(ValueError, match=r"fault point \(ckpt.delete\) already has an action"),
            faults.installed("ckpt.delete", lambda *call: None),
        ):
            pass
    faults.point("ckpt.delete", "y")
    assert seen == [("ckpt.delete", "x")]
    with (
        pytest.raises(ValueError, match=r"fault point \(nowhere\) must be one of ckpt.shard.write, "),
        faults.installed("nowhere", lambda *call: None),
    ):
        pass
