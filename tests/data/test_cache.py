from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from modlib.data.cache import CacheError, cache_folders, kept, one_at_a_time, remembered_hash, trusted, writable_cache
from modlib.runtime.errors import DataError
from tests.changing_files import overwrite_in_place


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
    path = tmp_path / "file"
    reads: list[str] = []

    def read() -> str:
        reads.append(path.read_text())
        return reads[-1]

    def hash_of(path: Path) -> str:
        return remembered_hash("kind", path, path.stat, read)

    path.write_text("a")
    assert [hash_of(path), hash_of(path)] == ["a", "a"]
    assert reads == ["a"]
    overwrite_in_place(path, 0, b"b")
    assert [hash_of(path), hash_of(path)] == ["b", "b"]
    path.chmod(0o600)  # no change: read again, not refused
    assert hash_of(path) == "b"
    assert reads == ["a", "b", "b"]
    (tmp_path / "other").hardlink_to(path)
    assert hash_of(tmp_path / "other") == "b"  # at another path
    assert len(reads) == 4
    for remembered in (tmp_path / "cache" / "kind").iterdir():
        remembered.write_text("{")
    assert [hash_of(path), hash_of(path)] == ["b", "b"]
    assert len(reads) == 5
    assert not list((tmp_path / "cache" / "kind").glob("*.lock"))


def test_a_file_that_changes_while_it_is_read_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODLIB_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "file"
    path.write_text("0")

    def reader(changes: int) -> Callable[[], str]:
        left = iter(range(changes))

        def read() -> str:
            found = path.read_text()
            if (number := next(left, None)) is not None:
                path.write_text(f"{number + 1}")
            return found

        return read

    assert remembered_hash("kind", path, path.stat, reader(2)) == "2"
    path.write_text("0")
    with pytest.raises(DataError, match=r"file must stay as it is while it is read; it changed 3 times: start when"):
        remembered_hash("kind", path, path.stat, reader(3))


def test_a_hash_that_cannot_be_kept_is_still_the_hash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, temporary: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("MODLIB_CACHE", str(tmp_path / "file" / "cache"))
    (temporary / f"modlib-{os.getuid()}").touch()
    path = tmp_path / "data"
    path.touch()
    with pytest.raises(CacheError, match="cache folder must be writable"):
        remembered_hash("kind", path, path.stat, lambda: "found")

    def read() -> str:  # what can be written before is full or gone afterwards
        (tmp_path / "cache" / "kind").chmod(0o500)
        shutil.rmtree(tmp_path / "cache")
        (tmp_path / "cache").touch()
        return "found"

    monkeypatch.setenv("MODLIB_CACHE", str(tmp_path / "cache"))
    assert remembered_hash("kind", path, path.stat, read) == "found"
    assert "the hash of " in caplog.text
    assert "cannot be kept, and is computed at each start: cache folder must be writable" in caplog.text


WAIT = """
import sys
from pathlib import Path
from modlib.data.cache import remembered_hash
path = Path(sys.argv[1])
print(remembered_hash("kind", path, path.stat, lambda: "mine", lambda: print("waits", flush=True)))
"""


def test_one_process_hashes_and_others_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODLIB_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "file"
    path.touch()

    other: list[subprocess.Popen[str]] = []

    def read_beside() -> str:
        process = subprocess.Popen([sys.executable, "-c", WAIT, str(path)], stdout=subprocess.PIPE, text=True)
        other.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "waits\n"
        return "found"

    assert remembered_hash("kind", path, path.stat, read_beside) == "found"
    with other[0] as process:
        assert process.stdout is not None
        assert process.stdout.read().splitlines()[-1] == "found"


def test_what_could_not_be_made_leaves_no_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODLIB_CACHE", str(tmp_path / "cache"))

    def make(path: Path) -> str:
        assert [lock.name for lock in path.parent.iterdir()] == ["name.lock"]
        raise DataError("bad data")

    with pytest.raises(DataError, match="bad data"):
        kept("kind", "name", lambda path: None, make, "makes it")
    assert list((tmp_path / "cache" / "kind").iterdir()) == []
    assert kept("kind", "name", lambda path: None, lambda path: path.name, "makes it") == "name"
