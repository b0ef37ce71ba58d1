from __future__ import annotations

import logging
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from modlib.data.cache import cache_folders, kept, one_at_a_time, remembered_hash, trusted, writable_cache
from modlib.runtime.errors import DataError


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for temporary files, for this test only."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def test_chosen_folder_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, temporary: Path) -> None:
    monkeypatch.setenv("MODLIB_CACHE", str(tmp_path / "mine"))
    assert cache_folders() == [tmp_path / "mine", temporary / f"modlib-{os.getuid()}"]
    assert writable_cache() == tmp_path / "mine"
    monkeypatch.delenv("MODLIB_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_folders()[0] == tmp_path / "home" / ".cache" / "modlib"


def test_falls_back_with_a_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, temporary: Path, caplog: pytest.LogCaptureFixture
) -> None:
    blocked = tmp_path / "file"
    blocked.touch()
    monkeypatch.setenv("MODLIB_CACHE", str(blocked / "cache"))
    with caplog.at_level(logging.WARNING, "modlib"):
        found = writable_cache()
    assert found == temporary / f"modlib-{os.getuid()}"
    assert found.stat().st_mode & 0o777 == 0o700
    assert caplog.messages == [
        f"cache: {blocked / 'cache'} cannot be written (Not a directory); using {found} instead. "
        "Set MODLIB_CACHE to a writable folder"
    ]


def test_another_user_s_temporary_folder_is_not_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, temporary: Path
) -> None:
    mine = temporary / f"modlib-{os.getuid()}"
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    mine.symlink_to(elsewhere)
    assert not trusted(mine)
    (tmp_path / "file").touch()
    monkeypatch.setenv("MODLIB_CACHE", str(tmp_path / "file"))
    with pytest.raises(DataError, match=r"cache folder must be writable: .*file cannot.* belongs to another user; set"):
        writable_cache()
    mine.unlink()
    assert not trusted(mine)
    mine.mkdir()
    assert trusted(mine)
    assert trusted(elsewhere)


HOLD = """
import sys
from pathlib import Path
from modlib.data.cache import one_at_a_time
with one_at_a_time(Path(sys.argv[1]), lambda: None):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_lock_is_held_by_one_process_and_dies_with_it(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(lock)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        waited = []

        def waiting() -> None:
            waited.append(True)
            holder.kill()

        with one_at_a_time(lock, waiting):
            assert waited == [True]
    with one_at_a_time(lock, waiting):
        assert waited == [True]


def test_a_hash_is_read_once_for_each_identity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODLIB_CACHE", str(tmp_path / "cache"))
    path, read = tmp_path / "file", iter(["first", "second", "third"])

    def hash_of(path: Path, *identity: int) -> str:
        return remembered_hash("kind", path, identity, lambda: next(read))

    assert [hash_of(path, 1, 2), hash_of(path, 1, 2), hash_of(path, 1, 3)] == ["first", "first", "second"]
    assert hash_of(tmp_path / "other", 1, 2) == "third"
    for remembered in (tmp_path / "cache" / "kind").iterdir():
        remembered.write_text("{")
    read = iter(["again"])
    assert [hash_of(path, 1, 2), hash_of(path, 1, 2)] == ["again", "again"]


def test_what_could_not_be_made_leaves_no_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODLIB_CACHE", str(tmp_path / "cache"))

    def make(path: Path) -> str:
        assert [lock.name for lock in path.parent.iterdir()] == ["name.lock"]
        raise DataError("bad data")

    with pytest.raises(DataError, match="bad data"):
        kept("kind", "name", lambda path: None, make, "makes it")
    assert list((tmp_path / "cache" / "kind").iterdir()) == []
    assert kept("kind", "name", lambda path: None, lambda path: path.name, "makes it") == "name"
